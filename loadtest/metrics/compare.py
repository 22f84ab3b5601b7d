"""Two or more result files side by side, with what chance could explain: ours, vLLM's and aiperf's.

Where a file has per-request times, the ratio of means gets a bootstrap interval, and that of throughputs one from how
the rate moved during the run (`metrics/result_files.py`); a difference counts as one only when the interval leaves
1 out. Where a file has none, the ratio stands alone, nothing is claimed, and a note says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.data.prompt import Json
from loadtest.errors import DataError
from loadtest.metrics.result_files import column, rate_slices
from loadtest.metrics.steady_state import Estimate

RESAMPLES = 2000
METRICS = (
    ("output_throughput", "output tok/s", True),
    ("total_token_throughput", "total tok/s", True),
    ("request_throughput", "requests/s", True),
    ("mean_ttft_ms", "TTFT mean ms", False),
    ("p99_ttft_ms", "TTFT P99 ms", False),
    ("mean_tpot_ms", "TPOT mean ms", False),
    ("p99_tpot_ms", "TPOT P99 ms", False),
    ("mean_itl_ms", "ITL mean ms", False),
    ("p99_itl_ms", "ITL P99 ms", False),
    ("mean_e2el_ms", "E2EL mean ms", False),
    ("completed", "succeeded", True),
    ("failed", "failed", False),
)
SAMPLES = {"ttft": "mean_ttft_ms", "tpot": "mean_tpot_ms", "e2el": "mean_e2el_ms"}
TAILS = {"ttft": "p99_ttft_ms", "tpot": "p99_tpot_ms"}


@dataclass(frozen=True)
class ResultFile:
    """What a file says, in vLLM's names; `samples` are per-request times in ms."""

    name: str
    source: str
    values: Mapping[str, float]
    samples: Mapping[str, NDArray[np.float64]]
    settings: Mapping[str, str]
    slices: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Rates during the run, by the name of their throughput."""


@dataclass(frozen=True)
class Change:
    """One figure of one file against the base."""

    value: float
    ratio: float
    low: float
    high: float
    """95 % interval of the ratio; NaN where it cannot be known."""
    better: bool | None
    """None where chance could explain the difference, or nothing is known about chance."""


def load_result(path: str) -> ResultFile:
    """Read a file of any of the three kinds."""
    try:
        found = msgspec.json.decode(Path(path).read_bytes())
    except OSError as bad:
        raise DataError(f"cannot read {path!r} ({bad.strerror})") from bad
    except msgspec.DecodeError as bad:
        raise DataError(f"{path} is not one JSON object ({bad})", "Results appended to one file must be split") from bad
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a result file")
    if "output_throughput" in found:
        return _vllm(path, found)
    if "request_throughput" in found and "time_to_first_token" in found:
        return _aiperf(path, found)
    raise DataError(f"{path} is no result of this tool, vLLM's or aiperf's", "Neither has its keys")


def _vllm(path: str, found: dict[str, Json]) -> ResultFile:
    values = {key: float(value) for key, *_ in METRICS if isinstance(value := found.get(key), int | float)}
    ours = found.get("loadtest")
    samples: dict[str, NDArray[np.float64]] = {}
    if isinstance(ours, dict) and isinstance(requests := ours.get("requests"), dict):
        samples = {name: column(requests.get(f"{name}_ms")) for name in SAMPLES}
    elif isinstance(found.get("ttfts"), list):
        samples = _vllm_details(found)
    settings = {
        key: str(found.get(key)) for key in ("backend", "model_id", "num_prompts", "max_concurrency", "request_rate")
    }
    label = found.get("label")
    return ResultFile(
        str(label or Path(path).stem), "ours" if ours else "vLLM", values, samples, settings, rate_slices(found)
    )


def _vllm_details(found: dict[str, Json]) -> dict[str, NDArray[np.float64]]:
    """From `--save-detailed`; failed requests have a TTFT of 0 there."""
    ttfts, latencies = column(found.get("ttfts")), column(found.get("latencies"))
    lengths = column(found.get("output_lens"))
    good = lengths > 0
    if not (len(ttfts) == len(latencies) == len(lengths)):
        return {"ttft": ttfts[ttfts > 0] * 1e3}
    several = lengths > 1
    tpots = (latencies - ttfts)[several] / (lengths[several] - 1)
    return {"ttft": ttfts[good] * 1e3, "tpot": tpots * 1e3, "e2el": latencies[good] * 1e3}


def _aiperf(path: str, found: dict[str, Json]) -> ResultFile:
    """aiperf's export: its inter-token latency is a mean per request, which is vLLM's TPOT, not its ITL."""

    def stat(metric: str, name: str) -> float | None:
        entry = found.get(metric)
        value = entry.get(name) if isinstance(entry, dict) else None
        return float(value) if isinstance(value, int | float) else None

    wanted = {
        "output_throughput": ("output_token_throughput", "avg"),
        "total_token_throughput": ("total_token_throughput", "avg"),
        "request_throughput": ("request_throughput", "avg"),
        "mean_ttft_ms": ("time_to_first_token", "avg"),
        "p99_ttft_ms": ("time_to_first_token", "p99"),
        "mean_tpot_ms": ("inter_token_latency", "avg"),
        "p99_tpot_ms": ("inter_token_latency", "p99"),
        "mean_itl_ms": ("inter_chunk_latency", "avg"),
        "p99_itl_ms": ("inter_chunk_latency", "p99"),
        "mean_e2el_ms": ("request_latency", "avg"),
        "completed": ("request_count", "avg"),
        "failed": ("error_request_count", "avg"),
    }
    values = {key: value for key, (metric, name) in wanted.items() if (value := stat(metric, name)) is not None}
    return ResultFile(Path(path).stem, "aiperf", values, {}, {})


def changes(base: ResultFile, other: ResultFile) -> dict[str, Change]:
    """Every figure that both files have."""
    out = {}
    rng = np.random.default_rng(0)
    for key, _, higher_is_better in METRICS:
        if key not in base.values or key not in other.values:
            continue
        low, high = _interval(key, base, other, rng)
        ratio = other.values[key] / base.values[key] if base.values[key] else math.nan
        clear = not math.isnan(low) and not low <= 1 <= high
        out[key] = Change(other.values[key], ratio, low, high, (ratio > 1) == higher_is_better if clear else None)
    return out


def _interval(key: str, base: ResultFile, other: ResultFile, rng: np.random.Generator) -> tuple[float, float]:
    """Bootstrap over requests, of the mean's or the 99th percentile's ratio; slices for throughputs."""
    if key in base.slices and key in other.slices:
        return _rate_interval(key, base, other)
    for kinds, statistic in ((SAMPLES, np.mean), (TAILS, lambda a, axis: np.percentile(a, 99, axis=axis))):
        for name, of in kinds.items():
            mine, theirs = base.samples.get(name), other.samples.get(name)
            if of == key and mine is not None and theirs is not None and min(len(mine), len(theirs)) >= 8:
                draws = []
                for data in (theirs, mine):
                    picks = rng.integers(0, len(data), size=(RESAMPLES, min(len(data), 4096)))
                    draws.append(statistic(data[picks], axis=1))
                low, high = np.percentile(draws[0] / draws[1], [2.5, 97.5])
                return float(low), float(high)
    return math.nan, math.nan


def _rate_interval(key: str, base: ResultFile, other: ResultFile) -> tuple[float, float]:
    """The ratio of the whole runs' rates, as uncertain as their slices are spread; in logarithms, as ratios are."""
    ratio = other.values[key] / base.values[key] if base.values[key] else math.nan
    parts = [Estimate.of(result.slices[key]) for result in (base, other)]
    half = math.hypot(*(part.half_width / part.mean for part in parts))
    return ratio * math.exp(-half), ratio * math.exp(half)


def comparison_rows(results: Sequence[ResultFile]) -> list[tuple[str, ...]]:
    """Rows for a table: name, base, then value, ratio and interval of each other file."""
    base, others = results[0], results[1:]
    compared = [changes(base, other) for other in others]
    rows = []
    for key, title, _ in METRICS:
        if key not in base.values:
            continue
        cells = [title, f"{base.values[key]:,.2f}"]
        for change in (found.get(key) for found in compared):
            cells += _cells(change)
        rows.append(tuple(cells))
    return rows


def _cells(change: Change | None) -> list[str]:
    if change is None:
        return ["", "", ""]
    if math.isnan(change.low):
        said = ""
    else:
        verdict = {True: "better", False: "worse", None: "within chance"}[change.better]
        said = f"{change.low:.3f} to {change.high:.3f}, {verdict}"
    ratio = "" if math.isnan(change.ratio) else f"{change.ratio:.3f}"
    return [f"{change.value:,.2f}", ratio, said]


def setting_notes(results: Sequence[ResultFile]) -> list[str]:
    """What differs in how the files were made."""
    notes = []
    for key in sorted({key for result in results for key in result.settings}):
        said = {result.name: result.settings.get(key) for result in results if key in result.settings}
        if len(set(said.values())) > 1:
            notes.append(f"{key} differs: " + ", ".join(f"{name} {value}" for name, value in said.items()))
    notes += [
        f"{result.name}: no interval for throughput, {_why_no_times(result)}" for result in results if not result.slices
    ]
    if sum(bool(result.slices) for result in results) > 1:
        notes.append("intervals say what chance does within a run; two runs of the same server can differ by more")
    if any(result.source == "aiperf" for result in results):
        notes.append("aiperf's per-request inter-token latency is set beside TPOT, its inter-chunk latency beside ITL")
    return notes


def _why_no_times(result: ResultFile) -> str:
    return {
        "ours": "the run was too short",
        "vLLM": "vLLM's files have times with --save-detailed",
        "aiperf": "the file has no times",
    }[result.source]
