"""Throughput in slices of a run, as far as a result file tells it: what an interval of its rate can be made of.

Our files hold the run's series. vLLM's hold every chunk's time where they were written with --save-detailed. A file
with neither, and aiperf's summary, say nothing about how steady the throughput was.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from loadtest.data.prompt import Json
from loadtest.metrics.steady_state import SLICES

Floats = NDArray[np.float64]
FEWEST = 5
"""Slices below which a spread means nothing."""
RAMP_SHARE = 0.1
"""Left out at both ends of a run whose steady state is not in the file."""


def rate_slices(found: Mapping[str, Json]) -> dict[str, Floats]:
    """Rates in equal slices under the names of vLLM's throughputs; empty where the file has no times."""
    ours = found.get("loadtest")
    if isinstance(ours, dict):
        return _of_series(ours.get("series"), ours.get("steady"))
    return _of_details(found)


def _of_series(series: Json, steady: Json) -> dict[str, Floats]:
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


def _of_details(found: Mapping[str, Json]) -> dict[str, Floats]:
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
    """Prompt tokens have no time of their own: all tokens are taken to move as the output does."""
    both = {"output_throughput": output, "total_token_throughput": output, "request_throughput": finished}
    return {name: slices for name, slices in both.items() if len(slices) >= FEWEST and slices.mean() > 0}


def _batches(values: Floats) -> Floats:
    """At most ten means of consecutive values: neighbours are alike, batches less so."""
    size = max(1, len(values) // SLICES)
    count = len(values) // size
    means: Floats = values[: count * size].reshape(count, size).mean(axis=1) if count else values
    return means


def column(values: object) -> Floats:
    """A list's numbers."""
    return np.asarray([v for v in values if v is not None] if isinstance(values, list) else [], dtype=np.float64)


def _number(value: Json, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default
