"""Throughput's interval: from our series, from vLLM's detailed file, and not from files without times."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from loadtest.metrics.compare import ResultFile, changes, load_result, setting_notes

DURATION_S = 60


def ours(rate: float, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    rates = rng.normal(rate, rate / 20, DURATION_S)
    series = {
        "step_s": 1.0,
        "at_s": [second + 0.5 for second in range(DURATION_S)],
        "output_rate": rates.tolist(),
        "finished_rate": (rates / 100).tolist(),
    }
    return {"loadtest": {"series": series, "steady": {"begin_s": 5.0, "end_s": 55.0}}}


def theirs(rate: float, seed: int) -> dict[str, object]:
    """Requests at random times, as `--save-detailed` writes them."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.uniform(0, DURATION_S, 2 * DURATION_S))
    gap_s = len(starts) / DURATION_S * 100 / rate / 100
    itls = [rng.normal(gap_s, gap_s / 10, 99).tolist() for _ in starts]
    return {
        "start_times": (1000 + starts).tolist(),
        "ttfts": [0.1] * len(starts),
        "itls": itls,
        "output_lens": [round(rate / 2)] * len(starts),
    }


def written(path: Path, name: str, rate: float, times: dict[str, object]) -> ResultFile:
    file = path / f"{name}.json"
    file.write_text(json.dumps({"output_throughput": rate, "request_throughput": rate / 100, **times}))
    return load_result(str(file))


@pytest.mark.parametrize("times", [ours, theirs])
def test_throughput_has_an_interval_where_the_file_has_times(tmp_path: Path, times: object) -> None:
    assert callable(times)
    base = written(tmp_path, "a", 100, times(100, 1))
    same, faster = written(tmp_path, "b", 101, times(101, 2)), written(tmp_path, "c", 150, times(150, 3))
    chance = changes(base, same)["output_throughput"]
    assert chance.low < 1 < chance.high
    assert chance.better is None
    real = changes(base, faster)["output_throughput"]
    assert real.better is True
    assert 1 < real.low < 1.5 < real.high
    assert any("within a run" in note for note in setting_notes([base, same]))


def test_a_file_without_times_says_so(tmp_path: Path) -> None:
    base = written(tmp_path, "a", 100, ours(100, 1))
    bare = written(tmp_path, "bare", 120, {})
    change = changes(base, bare)["output_throughput"]
    assert math.isnan(change.low)
    assert change.better is None
    assert setting_notes([base, bare]) == [
        "bare: no interval for throughput, vLLM's files have times with --save-detailed"
    ]
