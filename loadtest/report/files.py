"""Result files: JSON with vLLM's keys, and CSV. Each is written completely or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

import msgspec

from loadtest import __version__
from loadtest.api.record import RunRecords, itl_s, latency_s, tpot_s, ttft_s
from loadtest.data.prompt import Json
from loadtest.errors import DataError
from loadtest.fleet.view import FleetView
from loadtest.metrics.extended_metrics import token_gaps_s
from loadtest.metrics.load_search import SearchResult
from loadtest.metrics.summary import FailureGroup, Summary, SummarySpec
from loadtest.metrics.vllm_metrics import vllm_result
from loadtest.report.agents import agents_result
from loadtest.report.text import warnings

FORMAT = 1
"""Incremented when a key under `loadtest` changes its meaning."""
CSV_COLUMNS = (
    "index class session turn outcome status intended_s start_s ttft_ms first_visible_ms tpot_ms itl_mean_ms "
    "longest_token_gap_ms e2el_ms connect_ms prompt_tokens cached_tokens output_tokens chunks finish_reason replica "
    "error"
).split()


@dataclass(frozen=True)
class OutputSpec:
    """What is shown and which files are written."""

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
        """The files to write."""
        return tuple(path for path in (self.json, self.md, self.csv, self.html) if path)


def full_result(summary: Summary, *, detailed: bool) -> dict[str, Json]:
    """The result file: vLLM's keys at the top, so that vLLM's tools read it, and all others under `loadtest`."""
    run = summary.result.run
    ours: dict[str, object] = {
        "format": FORMAT,
        "version": __version__,
        "url": summary.run_info.url,
        "started_unix_s": run.wall_start_s,
        "interrupted": run.interrupted,
        "warnings": warnings(summary),
        "strict": asdict(summary.extended_metrics),
        "steady": asdict(summary.steady_state) if summary.steady_state else None,
        "series": asdict(summary.time_series),
        "classes": {name: asdict(metrics) for name, metrics in summary.per_class.items()},
        "objectives": [
            {"bound": r.bound.text, "value": r.value, "met": r.met, "attainment": r.attainment}
            for r in summary.bound_results
        ],
        "joint_attainment": summary.joint_attainment,
        "failures": [_failure(group) for group in summary.failures],
        "published": _published(summary),
        "projection": asdict(summary.projection) if summary.projection else None,
        "client_processes": summary.run_info.worker_count,
        "client": [asdict(check) for check in summary.checks],
        "fleet": _fleet(summary.fleet) if summary.fleet else None,
        "agents": agents_result(summary.agents),
        "requests": _requests(summary),
    }
    theirs = vllm_result(summary.run_info, run, summary.vllm_metrics, detailed=detailed)
    return {**theirs, **_spec_decode(summary), "loadtest": plain(ours)}


def _fleet(fleet: FleetView) -> dict[str, object]:
    """Events are called marks in the file, and the TTFT breakdown split."""
    names = {"events": "marks", "ttft_breakdown": "split"}
    return {names.get(field, field): value for field, value in asdict(fleet).items()}


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
    rows, reasons = summary.published()
    if not rows:
        return None
    return {
        "rows": [{"name": r.name, "ours": r.ours, "published": r.published, "ratios": r.ratios} for r in rows],
        "differences": reasons,
    }


def _spec_decode(summary: Summary) -> dict[str, Json]:
    """vLLM's keys for speculative decoding; empty where the engines' counters could not be read."""
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
    """Columns with one value per request, from which `compare` makes its intervals."""
    records = summary.result.run.records
    return {
        "ok": [record.ok for record in records],
        "class": [record.kind for record in records],
        "ttft_ms": [round(ttft_s(record) * 1e3, 4) if record.ok else None for record in records],
        "tpot_ms": [round(tpot_s(record) * 1e3, 5) if record.ok else None for record in records],
        "e2el_ms": [round((r.last_chunk_ns - r.start_ns) / 1e6, 4) if r.ok else None for r in records],
        "output_tokens": [record.output_tokens for record in records],
    }


def as_csv(run: RunRecords) -> str:
    """One line per request. Moments are relative to the start of the run; columns name their units."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(CSV_COLUMNS)
    for record in run.records:
        gaps, tokens = itl_s(record), token_gaps_s(record)
        visible = (record.first_visible_ns - record.start_ns) / 1e6 if record.first_visible_ns else ""
        writer.writerow(
            [
                record.index, record.kind, record.session if record.session >= 0 else "", record.turn,
                record.outcome.value, record.status or "",
                f"{(record.intended_ns - run.begin_ns) / 1e9:.6f}", f"{(record.start_ns - run.begin_ns) / 1e9:.6f}",
                _ms(ttft_s(record)) if len(record.chunk_ns) else "", visible if visible == "" else f"{visible:.3f}",
                _ms(tpot_s(record)) if record.ok else "", _ms(float(gaps.mean())) if len(gaps) else "",
                _ms(float(tokens.max())) if len(tokens) else "", _ms(latency_s(record)) if record.ok else "",
                f"{record.connect_ns / 1e6:.3f}", record.prompt_tokens, record.cached_tokens, record.output_tokens,
                len(record.chunk_ns), record.finish_reason, record.replica, record.error,
            ]
        )  # fmt: skip
    return out.getvalue()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def search_result(result: SearchResult, what: str) -> dict[str, Json]:
    """The result file of a search."""
    return {
        "what": what,
        "best": result.best.load if result.best else None,
        "knee": result.knee.load if result.knee else None,
        "exhausted": result.exhausted,
        "interrupted": result.interrupted,
        "steps": [
            {
                "load": step.load,
                "holds": step.passed,
                "saturated": step.saturated,
                "completed": step.vllm_metrics.completed,
                "failed": step.vllm_metrics.failed,
                "output_throughput": step.vllm_metrics.output_throughput,
                "mean_tpot_ms": step.vllm_metrics.tpot.mean,
                "p99_ttft_ms": step.vllm_metrics.ttft.percentiles[99.0],
                "p99_tpot_ms": step.vllm_metrics.tpot.percentiles[99.0],
                "objectives": {v.bound.text: plain(v.value) for v in step.bound_results},
            }
            for step in result.steps
        ],
    }


def plain(value: object) -> Json:
    """A value as JSON: enums by value, numeric keys as text, infinity and NaN as null."""
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
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(path: Path, content: Mapping[str, Json] | Sequence[Json]) -> None:
    """Write JSON to a file, as `write_text` does."""
    write_text(path, msgspec.json.format(msgspec.json.encode(content), indent=1).decode())


def check_writable(path: Path) -> None:
    """Raise before a run if the file could not be written after it."""
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
    """Write a file in one step, so that no reader sees half of it."""
    part = path.with_name(path.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    except OSError as bad:
        raise DataError(f"cannot write {path} ({bad.strerror})", "Choose another place") from bad
