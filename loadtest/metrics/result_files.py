"""Reads the result files of this tool, of vLLM and of aiperf into one form, under vLLM's names.

Per-request times and throughput over time are what `compare` makes its intervals from. This tool's files hold both.
vLLM's hold them where they were written with `--save-detailed`. aiperf's summary holds neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.data.prompt import Json
from loadtest.errors import DataError
from loadtest.metrics.steady_state import SLICES

Floats = NDArray[np.float64]
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
"""Key, title, and whether more is better."""
SAMPLED = ("ttft", "tpot", "e2el")
"""Metrics of which a file may hold one time per request."""
MIN_SLICES = 5
"""Below this number of slices their spread means nothing."""
RAMP_SHARE = 0.1
"""Left out at both ends of a run whose steady state is not in the file."""


@dataclass(frozen=True)
class ResultFile:
    """The content of a result file, under vLLM's names. `samples` are per-request times in ms."""

    name: str
    source: str
    values: Mapping[str, float]
    samples: Mapping[str, Floats]
    settings: Mapping[str, str]
    slices: Mapping[str, Floats] = field(default_factory=dict)
    """Throughputs in equal slices of the run, by name."""


def load_result(path: str) -> ResultFile:
    """Read a file of any of the three kinds."""
    try:
        found = msgspec.json.decode(Path(path).read_bytes())
    except OSError as bad:
        raise DataError(f"cannot read {path!r} ({bad.strerror})") from bad
    except msgspec.DecodeError as bad:
        raise DataError(f"{path} is not one JSON object ({bad})", "Results appended to one file must be split") from bad
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a result file", "Name a file that --json, --save-result or aiperf wrote")
    if "output_throughput" in found:
        return _vllm(path, found)
    if "request_throughput" in found and "time_to_first_token" in found:
        return _aiperf(path, found)
    raise DataError(
        f"{path} is not a result file of this tool, of vLLM or of aiperf", "It has the keys of none of them"
    )


def _vllm(path: str, found: dict[str, Json]) -> ResultFile:
    values = {key: float(value) for key, *_ in METRICS if isinstance(value := found.get(key), int | float)}
    ours = found.get("loadtest")
    samples: dict[str, Floats] = {}
    if isinstance(ours, dict) and isinstance(requests := ours.get("requests"), dict):
        samples = {name: column(requests.get(f"{name}_ms")) for name in SAMPLED}
    elif isinstance(found.get("ttfts"), list):
        samples = _vllm_details(found)
    settings = {
        key: str(found.get(key)) for key in ("backend", "model_id", "num_prompts", "max_concurrency", "request_rate")
    }
    label = found.get("label")
    return ResultFile(
        str(label or Path(path).stem), "ours" if ours else "vLLM", values, samples, settings, rate_slices(found)
    )


def _vllm_details(found: dict[str, Json]) -> dict[str, Floats]:
    """From the lists of `--save-detailed`, where failed requests have a TTFT of 0."""
    ttfts, latencies = column(found.get("ttfts")), column(found.get("latencies"))
    lengths = column(found.get("output_lens"))
    succeeded = lengths > 0
    if not (len(ttfts) == len(latencies) == len(lengths)):
        return {"ttft": ttfts[ttfts > 0] * 1e3}
    several = lengths > 1
    tpots = (latencies - ttfts)[several] / (lengths[several] - 1)
    return {"ttft": ttfts[succeeded] * 1e3, "tpot": tpots * 1e3, "e2el": latencies[succeeded] * 1e3}


def _aiperf(path: str, found: dict[str, Json]) -> ResultFile:
    """aiperf's inter-token latency is a mean per request, which is vLLM's TPOT and not its ITL."""

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


def rate_slices(found: Mapping[str, Json]) -> dict[str, Floats]:
    """Throughputs in equal slices under vLLM's names; empty where the file has no times."""
    ours = found.get("loadtest")
    if isinstance(ours, dict):
        return _from_series(ours.get("series"), ours.get("steady"))
    return _from_details(found)


def _from_series(series: Json, steady: Json) -> dict[str, Floats]:
    if not isinstance(series, dict):
        return {}
    at = column(series.get("at_s"))
    if not len(at):
        return {}
    begin, end = float(at[0]), float(at[-1])
    if isinstance(steady, dict):
        begin, end = _number(steady.get("begin_s"), begin), _number(steady.get("end_s"), end)
    else:
        begin, end = begin + RAMP_SHARE * (end - begin), end - RAMP_SHARE * (end - begin)
    step = _number(series.get("step_s"), 0.0)
    inside = (at - step / 2 >= begin - 1e-9) & (at + step / 2 <= end + 1e-9)
    output, finished = column(series.get("output_rate")), column(series.get("finished_rate"))
    if not len(output) == len(finished) == len(at):
        return {}
    return _named(_batches(output[inside]), _batches(finished[inside]))


def _from_details(found: Mapping[str, Json]) -> dict[str, Floats]:
    starts, ttfts, lengths = (column(found.get(name)) for name in ("start_times", "ttfts", "output_lens"))
    gaps = found.get("itls")
    if not isinstance(gaps, list) or not len(starts) == len(ttfts) == len(lengths) == len(gaps):
        return {}
    times, weights, ends = [], [], []
    for start, ttft, length, some in zip(starts, ttfts, lengths, gaps, strict=True):
        if not length:
            continue
        arrived = start + np.cumsum(np.concatenate([[ttft], column(some)]))
        times.append(arrived)
        weights.append(np.full(len(arrived), length / len(arrived)))
        ends.append(arrived[-1])
    if not times:
        return {}
    begin, end = float(starts.min()), float(max(ends))
    edges = np.linspace(begin + RAMP_SHARE * (end - begin), end - RAMP_SHARE * (end - begin), SLICES + 1)
    width = edges[1] - edges[0]
    if width <= 0:
        return {}
    tokens, _ = np.histogram(np.concatenate(times), bins=edges, weights=np.concatenate(weights))
    finished, _ = np.histogram(ends, bins=edges)
    return _named(tokens / width, finished / width)


def _named(output: Floats, finished: Floats) -> dict[str, Floats]:
    """Prompt tokens have no arrival time, so total throughput is taken to vary as output throughput does."""
    both = {"output_throughput": output, "total_token_throughput": output, "request_throughput": finished}
    return {name: slices for name, slices in both.items() if len(slices) >= MIN_SLICES and slices.mean() > 0}


def _batches(values: Floats) -> Floats:
    """Means of consecutive values, some ten of them: neighbouring values are correlated, means of batches less so."""
    size = max(1, len(values) // SLICES)
    count = len(values) // size
    means: Floats = values[: count * size].reshape(count, size).mean(axis=1) if count else values
    return means


def column(values: object) -> Floats:
    """The numbers of a list; None is left out."""
    return np.asarray([v for v in values if v is not None] if isinstance(values, list) else [], dtype=np.float64)


def _number(value: Json, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default
