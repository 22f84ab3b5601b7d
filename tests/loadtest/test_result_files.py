"""Result files of three kinds, and which of their differences chance could explain."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from loadtest.errors import DataError
from loadtest.metrics.compare import changes, comparison_notes, comparison_rows
from loadtest.metrics.result_files import ResultFile, load_result

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
    assert any("within a run" in note for note in comparison_notes([base, same]))


def test_a_file_without_times_says_so(tmp_path: Path) -> None:
    base = written(tmp_path, "a", 100, ours(100, 1))
    bare = written(tmp_path, "bare", 120, {})
    change = changes(base, bare)["output_throughput"]
    assert math.isnan(change.low)
    assert change.better is None
    assert comparison_notes([base, bare]) == [
        "bare: no interval for throughput, because vLLM writes times only with --save-detailed"
    ]


def write_times(path: Path, name: str, ttft_ms: float, *, ours: bool) -> str:
    rng = np.random.default_rng(len(name))
    times = (rng.gamma(20, ttft_ms / 20, size=200)).tolist()
    content: dict[str, object] = {
        "output_throughput": 100.0, "request_throughput": 1.0, "completed": 200, "failed": 0,
        "mean_ttft_ms": float(np.mean(times)), "max_concurrency": 8,
    }  # fmt: skip
    if ours:
        content["loadtest"] = {"requests": {"ttft_ms": times, "tpot_ms": [], "e2el_ms": []}}
    else:
        seconds = [t / 1e3 for t in times]
        content |= {"ttfts": seconds, "latencies": [t + 1 for t in seconds], "output_lens": [11] * 200}
    file = path / f"{name}.json"
    file.write_text(json.dumps(content))
    return str(file)


def test_a_real_difference_is_distinguished_from_chance_in_both_formats(tmp_path: Path) -> None:
    base = load_result(write_times(tmp_path, "a", 100, ours=True))
    same = load_result(write_times(tmp_path, "bb", 100, ours=False))
    slow = load_result(write_times(tmp_path, "ccc", 130, ours=False))
    assert changes(base, same)["mean_ttft_ms"].better is None
    slower = changes(base, slow)["mean_ttft_ms"]
    assert slower.better is False
    assert slower.low > 1


def test_aiperfs_file_is_read_with_its_meaning(tmp_path: Path) -> None:
    file = tmp_path / "profile_export_aiperf.json"
    metric = {"unit": "ms", "avg": 20.0, "p99": 30.0}
    content = {
        "request_throughput": {"avg": 2.0}, "output_token_throughput": {"avg": 500.0},
        "time_to_first_token": metric, "inter_token_latency": metric,
    }  # fmt: skip
    file.write_text(json.dumps(content))
    found = load_result(str(file))
    assert found.source == "aiperf"
    assert found.values["mean_tpot_ms"] == 20.0
    assert "mean_itl_ms" not in found.values


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"a": 1}\n{"a": 2}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DataError):
        load_result(str(file))


def test_a_tail_gets_an_interval_and_a_missing_figure_an_empty_cell(tmp_path: Path) -> None:
    times = np.random.default_rng(0).gamma(20, 5, size=400)
    content = {"output_throughput": 1.0, "p99_ttft_ms": float(np.percentile(times, 99)), "mean_e2el_ms": 5.0}
    files = []
    for factor in (1.0, 1.5):
        file = tmp_path / f"{factor}.json"
        requests = {"requests": {"ttft_ms": (times * factor).tolist(), "tpot_ms": [], "e2el_ms": [1.0, None]}}
        found = {**content, "p99_ttft_ms": content["p99_ttft_ms"] * factor, "loadtest": requests}
        file.write_text(
            json.dumps({key: value for key, value in found.items() if factor == 1 or key != "mean_e2el_ms"})
        )
        files.append(load_result(str(file)))
    tail = changes(*files)["p99_ttft_ms"]
    assert tail.better is False
    assert 1 < tail.low < tail.ratio == pytest.approx(1.5)
    rows = {row[0]: row for row in comparison_rows(files)}
    assert rows["E2EL mean ms"] == ("E2EL mean ms", "5.00", "", "", "")
    assert rows["TTFT P99 ms"][3:] == ("1.500", f"{tail.low:.3f} to {tail.high:.3f}, worse")
    assert rows["output tok/s"][3:] == ("1.000", "")


@pytest.mark.parametrize(
    "loadtest",
    [{}, {"series": {}}, {"series": {"at_s": [1.0], "step_s": 1.0, "output_rate": [1.0, 2.0], "finished_rate": [1.0]}},
     {"series": {"at_s": [0.5, 1.5], "step_s": 1.0, "output_rate": [1.0, 2.0], "finished_rate": [1.0, 1.0]}}],
)  # fmt: skip
def test_too_little_of_a_series_gives_no_slices(tmp_path: Path, loadtest: dict[str, object]) -> None:
    assert written(tmp_path, "a", 10, {"loadtest": loadtest or {"x": 1}}).slices == {}


def test_a_file_of_failures_gives_no_slices(tmp_path: Path) -> None:
    lists = {"start_times": [1.0], "ttfts": [0.0], "output_lens": [0], "itls": [[]], "latencies": [0.0]}
    found = written(tmp_path, "a", 10, lists)
    assert found.slices == {}
    assert len(found.samples["ttft"]) == 0
