"""Files: vLLM's object with ours inside, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

import msgspec

from loadtest import __version__
from loadtest.api.record import tpot_s, ttft_s
from loadtest.data.prompt import Json
from loadtest.errors import DataError
from loadtest.metrics.summary import FailureGroup, Summary, SummarySpec
from loadtest.metrics.vllm_result import vllm_result
from loadtest.report.tables import warnings

FORMAT = 1
"""Raised when a key under `loadtest` changes its meaning."""


@dataclass(frozen=True)
class OutputSpec:
    """What to show and keep."""

    summary: SummarySpec = field(default_factory=SummarySpec)
    assertions: tuple[str, ...] = ()
    json: str | None = None
    csv: str | None = None
    md: str | None = None
    html: str | None = None
    detailed: bool = False
    keep_text: bool = False
    label: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    live: bool | None = None
    quiet: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Where reports are to be written."""
        return tuple(path for path in (self.json, self.md, self.csv, self.html) if path)


def full_result(summary: Summary, *, detailed: bool) -> dict[str, Json]:
    """vLLM's keys at the top, so that its plots and sweeps read the file; everything else under `loadtest`."""
    run = summary.finished.run
    ours: dict[str, object] = {
        "format": FORMAT,
        "version": __version__,
        "url": summary.about.url,
        "started_unix_s": run.wall_start_s,
        "interrupted": run.interrupted,
        "warnings": warnings(summary),
        "strict": asdict(summary.extended_metrics),
        "steady": asdict(summary.steady) if summary.steady else None,
        "series": asdict(summary.series),
        "classes": {name: asdict(vllm_metrics) for name, vllm_metrics in summary.kinds.items()},
        "objectives": [
            {"bound": v.bound.text, "value": v.value, "met": v.met, "attainment": v.attainment}
            for v in summary.verdicts
        ],
        "joint_attainment": summary.joint,
        "failures": [_failure(group) for group in summary.failures],
        "published": _published(summary),
        "projection": asdict(summary.projection) if summary.projection else None,
        "client_processes": summary.about.worker_count,
        "client": [asdict(check) for check in summary.checks],
        "fleet": asdict(summary.fleet) if summary.fleet else None,
        "requests": _requests(summary),
    }
    theirs = vllm_result(summary.about, run, summary.vllm_metrics, detailed=detailed)
    return {**theirs, **_spec_decode(summary), "loadtest": plain(ours)}


def _failure(group: FailureGroup) -> dict[str, object]:
    return {
        "outcome": group.outcome.value,
        "count": group.count,
        "examples": [
            {"index": r.index, "status": r.status, "error": r.error, "body": r.body, "retry_after_s": r.retry_after_s}
            for r in group.examples
        ],
    }


def _published(summary: Summary) -> dict[str, object] | None:
    rows, why_not = summary.published()
    if not rows:
        return None
    return {
        "rows": [{"name": r.name, "ours": r.ours, "published": r.published, "ratios": r.ratios} for r in rows],
        "differences": why_not,
    }


def _spec_decode(summary: Summary) -> dict[str, Json]:
    """vLLM's keys for speculative decoding, where the engines' counters could be read."""
    spec = summary.fleet.spec_decode if summary.fleet else None
    if spec is None or not spec.draft_tokens:
        return {}
    return {
        "spec_decode_acceptance_rate": spec.accepted_tokens / spec.draft_tokens * 100,
        "spec_decode_acceptance_length": 1 + spec.accepted_tokens / spec.drafts,
        "spec_decode_num_drafts": spec.drafts,
        "spec_decode_draft_tokens": spec.draft_tokens,
        "spec_decode_accepted_tokens": spec.accepted_tokens,
    }


def _requests(summary: Summary) -> dict[str, object]:
    """Per request, in columns: what `compare` needs for its intervals."""
    records = summary.finished.run.records
    return {
        "ok": [record.ok for record in records],
        "class": [record.kind for record in records],
        "ttft_ms": [round(ttft_s(record) * 1e3, 4) if record.ok else None for record in records],
        "tpot_ms": [round(tpot_s(record) * 1e3, 5) if record.ok else None for record in records],
        "e2el_ms": [round((r.last_chunk_ns - r.start_ns) / 1e6, 4) if r.ok else None for r in records],
        "output_tokens": [record.output_tokens for record in records],
    }


def plain(value: object) -> Json:
    """Anything of ours as JSON: enums by value, numeric keys as text, infinity as null."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {f"{key:g}" if isinstance(key, float) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"no JSON for {type(value).__name__}")


def write_json(path: Path, content: Mapping[str, Json] | Sequence[Json]) -> None:
    """Write JSON whole or not at all."""
    write_text(path, msgspec.json.format(msgspec.json.encode(content), indent=1).decode())


def check_writable(path: Path) -> None:
    """Raise before a run what would go wrong after it."""
    if path.is_dir():
        raise DataError(f"cannot write {path} (it is a folder)", "Name a file in it")
    part = path.with_name(path.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as bad:
        raise DataError(f"cannot write {path} ({bad.strerror})", "Choose another place") from bad


def write_text(path: Path, content: str) -> None:
    """A reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    except OSError as bad:
        raise DataError(f"cannot write {path} ({bad.strerror})", "Choose another place") from bad
