"""Schedules, objectives, steady state, strict figures, search, comparison: pure arithmetic on made-up records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.api.record import Record, RunRecords
from loadtest.errors import DataError, RequestOutcome, UsageError
from loadtest.load.schedule import Phase, parse_phases, phased_times, steady_times
from loadtest.metrics.compare import changes, load_result
from loadtest.metrics.extended_metrics import extended_metrics_of
from loadtest.metrics.load_search import (
    EarlyStopRule,
    SearchEnded,
    SearchRange,
    SearchStep,
    find_knee,
    grew_all_through,
    next_load,
    search,
)
from loadtest.metrics.recovery import recoveries
from loadtest.metrics.reference_results import PRESETS, REFERENCE_MACHINES, BenchmarkSettings, differences, side_by_side
from loadtest.metrics.slo import joint_attainment, judge, parse_bounds
from loadtest.metrics.steady_state import Estimate, find_steady_state
from loadtest.metrics.time_series import over_time
from loadtest.metrics.vllm_metrics import compute_vllm_metrics
from loadtest.report.search_text import found_text

MS = 1_000_000
BEGIN = 10**12


def record(
    start_ms: float, ttft_ms: float, gap_ms: float, chunks: int, *, index: int = 0, ok: bool = True, per_chunk: int = 1
) -> Record:
    """A request with even gaps."""
    start = BEGIN + int(start_ms * MS)
    times = start + int(ttft_ms * MS) + np.arange(chunks, dtype=np.int64) * int(gap_ms * MS)
    return Record(
        index=index,
        intended_ns=start,
        start_ns=start,
        end_ns=int(times[-1]),
        chunk_ns=times,
        chunk_has_token=np.ones(chunks, dtype=np.bool_),
        first_visible_ns=int(times[0]),
        status=200 if ok else 500,
        outcome=RequestOutcome.OK if ok else RequestOutcome.SERVER_ERROR,
        output_tokens=chunks * per_chunk,
        vllm_output_tokens=chunks * per_chunk,
        vllm_prompt_tokens=100,
        prompt_tokens=100,
        planned_prompt_tokens=100,
        planned_output_tokens=chunks * per_chunk,
        tokens_from="usage",
        vllm_success=ok,
    )


def run_of(records: list[Record]) -> RunRecords:
    return RunRecords(records, BEGIN, max(r.end_ns for r in records), 1_700_000_000.0)


class TestSchedule:
    def test_constant_times_are_even(self) -> None:
        times = steady_times(5, 4.0, math.inf, np.random.default_rng(0))
        assert times.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]

    @pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
    def test_gamma_gaps_have_the_rate_and_spread_asked_for(self, burstiness: float) -> None:
        gaps = np.diff(steady_times(40_000, 10.0, burstiness, np.random.default_rng(1)))
        assert gaps.mean() == pytest.approx(0.1, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)

    def test_phases_are_read(self) -> None:
        assert parse_phases("30s@2, 1m@2-8,5@0.5") == [Phase(30, 2, 2), Phase(60, 2, 8), Phase(5, 0.5, 0.5)]

    @pytest.mark.parametrize("text", ["", "30s", "@2", "30s@x", "0s@2"])
    def test_nonsense_phases_are_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            parse_phases(text)

    def test_each_phase_offers_what_it_promises(self) -> None:
        times = phased_times(
            [Phase(100, 2, 2), Phase(100, 2, 10), Phase(50, 30, 30)], math.inf, np.random.default_rng(0)
        )
        counts, _ = np.histogram(times, bins=[0, 100, 150, 200, 250])
        assert counts.tolist() == pytest.approx([200, 200, 400, 1500], abs=2)
        assert (np.diff(times) >= 0).all()

    @settings(max_examples=30, deadline=None)
    @given(st.floats(0.1, 50), st.floats(0.1, 50), st.integers(0, 1000))
    def test_times_stay_within_their_phases(self, start: float, end: float, seed: int) -> None:
        times = phased_times([Phase(5, start, end), Phase(5, end, start)], 1.0, np.random.default_rng(seed))
        assert (times >= 0).all()
        assert (times <= 10 + 1e-9).all()


class TestObjectives:
    def test_a_failure_is_a_miss(self) -> None:
        records = [record(0, 100, 10, 5) for _ in range(98)] + [record(0, 100, 10, 5, ok=False) for _ in range(2)]
        verdicts = judge(parse_bounds("ttft_p99<1s,ttft_p90<1s,failed<1%,failed<=2%"), run_of(records))
        assert [verdict.met for verdict in verdicts] == [False, True, False, True]
        assert math.isinf(verdicts[0].value)
        assert verdicts[0].attainment == pytest.approx(0.98)

    def test_units_are_understood(self) -> None:
        assert [bound.limit for bound in parse_bounds("ttft_p50<1.5s,tpot_mean<30ms,e2el_max<200,failed<1%")] == [
            1500, 30, 200, 0.01,
        ]  # fmt: skip

    @pytest.mark.parametrize("text", ["ttft<3s", "foo_p99<3", "failed_p99<1", "ttft_p99=3", "ttft_p99<"])
    def test_nonsense_is_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(UsageError):
            parse_bounds(text)

    def test_all_limits_at_once(self) -> None:
        run = run_of([record(0, 100, 10, 5), record(0, 300, 10, 5), record(0, 100, 50, 5)])
        assert joint_attainment(parse_bounds("ttft_p99<200ms,tpot_p99<20ms"), run) == pytest.approx(1 / 3)


class TestStrict:
    def test_a_gap_per_token_is_the_gap_over_the_tokens_it_brought(self) -> None:
        extended_metrics = extended_metrics_of([record(0, 50, 30, 10, per_chunk=3)], [99.0])
        assert extended_metrics.tokens_per_chunk == 3
        assert extended_metrics.token_gap.mean == pytest.approx(10)
        assert extended_metrics.output_drift is not None
        assert extended_metrics.output_drift.off_ratio == 0

    def test_events_of_one_read_are_a_burst(self) -> None:
        one = record(0, 50, 20, 4)
        one.chunk_ns = one.chunk_ns[[0, 0, 2, 2]]
        extended_metrics = extended_metrics_of([one], [99.0])
        assert extended_metrics.bursts_ratio == 0.5
        assert extended_metrics.read_gap.mean == pytest.approx(40)

    def test_the_intended_time_shows_what_the_send_time_hides(self) -> None:
        one = record(0, 50, 20, 4)
        one.intended_ns = one.start_ns - 500 * MS
        extended_metrics = extended_metrics_of([one], [99.0])
        assert extended_metrics.first_token.mean == pytest.approx(50)
        assert extended_metrics.first_token_intended.mean == pytest.approx(550)
        assert extended_metrics.queue.mean == pytest.approx(500)


class TestSteady:
    def test_ramp_and_tail_are_left_out(self) -> None:
        records = [record(slot * 5 + wave * 1000, 100, 9, 100, index=wave) for wave in range(10) for slot in range(4)]
        steady = find_steady_state(run_of(records), slots=4)
        assert steady is not None
        assert steady.begin_s == pytest.approx(0.015)
        assert steady.end_s == pytest.approx(9.991, abs=0.02)
        assert steady.output_rate.mean == pytest.approx(400, rel=0.03)
        assert steady.ttft.mean == pytest.approx(100)

    def test_a_run_too_short_has_none(self) -> None:
        assert find_steady_state(run_of([record(0, 10, 1, 3)]), slots=1) is None

    def test_an_interval_holds_the_truth_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        hits = 0
        for _ in range(1000):
            estimate = Estimate.of(rng.normal(5, 2, size=10))
            hits += abs(estimate.mean - 5) <= estimate.half_width
        assert 930 <= hits <= 970

    def test_the_series_adds_up_to_the_run(self) -> None:
        run = run_of([record(i * 37, 50, 7, 20, index=i) for i in range(30)])
        series = over_time(run)
        tokens = sum(rate or 0 for rate in series.output_rate) * series.step_s
        assert tokens == pytest.approx(600, abs=1)
        busy_s = sum(level or 0 for level in series.inflight) * series.step_s
        assert busy_s == pytest.approx(sum((r.end_ns - r.start_ns) / 1e9 for r in run.records), rel=1e-6)


class TestSearch:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 1100), st.integers(1, 64))
    async def test_it_finds_the_highest_that_holds(self, truth: int, low: int) -> None:
        async def try_load(load: float) -> SearchStep:
            records = [record(0, 10 if load <= truth else 1000, 1, 3)]
            bounds = parse_bounds("ttft_p99<100ms")
            run = run_of(records)
            return SearchStep(
                load, compute_vllm_metrics(records, 1.0, [50.0, 99.0]), tuple(judge(bounds, run)), False, run
            )

        found = await search(SearchRange(low, 1024, whole=True, precision=0.0), try_load)
        if truth >= 1:
            assert found.best is not None
            assert found.best.load == min(truth, 1024)
        else:
            assert found.best is None
        assert found.exhausted == (truth >= 1024)

    async def test_what_was_tried_before_an_interrupt_counts(self) -> None:
        async def try_load(load: float) -> SearchStep:
            if load > 4:
                raise SearchEnded
            records = [record(0, 10, 1, 3)]
            return SearchStep(load, compute_vllm_metrics(records, 1.0, [50.0, 99.0]), (), False, run_of(records))

        found = await search(SearchRange(1, 1024, whole=True), try_load)
        assert [step.load for step in found.steps] == [1, 2, 4]
        assert found.interrupted
        assert not found.exhausted
        assert "4 requests at a time, as far as the search came: it was interrupted" in found_text(found, "concurrency")

    def test_the_path_doubles_then_halves(self) -> None:
        span = SearchRange(1, 100, whole=True)
        assert next_load(span, 1, None) == 2
        assert next_load(span, 64, None) == 100
        assert next_load(span, 16, 32) == 24
        assert next_load(span, 16, 17) is None
        assert next_load(span, None, 1) is None
        assert next_load(span, None, 8) == 4
        assert next_load(span, 100, None) is None

    def test_a_lost_step_is_known_early(self) -> None:
        hopeless = EarlyStopRule(parse_bounds("ttft_p99<100ms"), total=100)
        verdicts = [hopeless.add(ok=True, ttft_ms=500, tpot_ms=1) for _ in range(3)]
        assert verdicts == [False, False, True]

    def test_the_knee_is_where_more_brings_less(self) -> None:
        def step(load: float, rate: float) -> SearchStep:
            records = [record(0, 10, 1, max(1, round(rate)))]
            return SearchStep(load, compute_vllm_metrics(records, 1.0, [99.0]), (), False, run_of(records))

        steps = [step(1, 100), step(2, 200), step(4, 390), step(8, 420), step(16, 425)]
        knee = find_knee(steps)
        assert knee is not None
        assert knee.load == 4

    def test_a_growing_queue_is_seen_and_a_noisy_server_is_not(self) -> None:
        rng = np.random.default_rng(0)
        growing = [record(i * 10, 50 + i * 5 + rng.uniform(0, 60), 1, 3, index=i) for i in range(100)]
        noisy = [record(i * 10, rng.uniform(20, 600), 1, 3, index=i) for i in range(100)]
        assert grew_all_through(run_of(growing))
        assert not grew_all_through(run_of(noisy))


class TestPublished:
    SETTING = BenchmarkSettings("random", "chat", 8192, 2048, 512, 32, 0, forced=True, interrupted=False)

    def test_the_preset_is_the_published_command(self) -> None:
        preset = PRESETS["published-8k-2k"]
        assert (preset["input_len"], preset["output_len"], preset["num_prompts"]) == (8192, 2048, 512)
        assert (preset["concurrency"], preset["seed"], preset["ignore_eos"]) == (32, 0, True)
        assert [machine.output_rate for machine in REFERENCE_MACHINES] == [1597, 1245, 474]

    def test_rows_carry_ratios(self) -> None:
        rows = side_by_side(compute_vllm_metrics([record(0, 2183, 18.8, 100)], 1.0, [99.0]))
        ttft = next(row for row in rows if row.name == "TTFT mean")
        assert ttft.ratios[0] == pytest.approx(1.0)

    def test_every_difference_is_told(self) -> None:
        records = [record(0, 50, 20, 10, per_chunk=1)]
        records[0].cached_tokens = 50
        records[0].planned_output_tokens = 20
        vllm_metrics, extended_metrics = (
            compute_vllm_metrics(records, 1.0, [99.0]),
            extended_metrics_of(records, [99.0]),
        )
        setting = BenchmarkSettings("natural", "chat", 1, 2, 3, 4, 5, forced=False, interrupted=True)
        said = " ".join(differences(setting, vllm_metrics, extended_metrics, extended_metrics.cached_ratio))
        for word in ("dataset", "input len", "output len", "num prompts", "concurrency", "seed", "ignore_eos",
                     "interrupted", "10 tokens on average", "cache", "tokens per chunk"):  # fmt: skip
            assert word in said

    def test_a_faithful_run_compares(self) -> None:
        records = [record(0, 2000, 52.7, 731, per_chunk=1) for _ in range(2)]
        for one in records:
            one.output_tokens = one.vllm_output_tokens = one.planned_output_tokens = 2048
        vllm_metrics, extended_metrics = (
            compute_vllm_metrics(records, 1.0, [99.0]),
            extended_metrics_of(records, [99.0]),
        )
        assert differences(self.SETTING, vllm_metrics, extended_metrics, None) == []


class TestRecovery:
    BOUNDS = parse_bounds("ttft_p90<100ms")

    def test_it_says_how_long_a_disturbance_was_felt(self) -> None:
        records = [record(i * 100, 1000 if 10_000 <= i * 100 < 14_000 else 50, 1, 3, index=i) for i in range(300)]
        ((moment, seconds),) = recoveries(run_of(records), self.BOUNDS, [10.0])
        assert moment == 10.0
        assert seconds == pytest.approx(3.5, abs=0.6)

    def test_nothing_felt_is_zero_and_no_recovery_is_none(self) -> None:
        calm = [record(i * 100, 50, 1, 3, index=i) for i in range(100)]
        assert recoveries(run_of(calm), self.BOUNDS, [5.0]) == ((5.0, 0.0),)
        lost = [record(i * 100, 50 if i < 50 else 900, 1, 3, index=i) for i in range(100)]
        assert recoveries(run_of(lost), self.BOUNDS, [5.0]) == ((5.0, None),)


class TestCompare:
    def write(self, path: Path, name: str, ttft_ms: float, *, ours: bool) -> str:
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

    def test_a_real_difference_is_told_from_chance_in_both_formats(self, tmp_path: Path) -> None:
        base = load_result(self.write(tmp_path, "a", 100, ours=True))
        same = load_result(self.write(tmp_path, "bb", 100, ours=False))
        slow = load_result(self.write(tmp_path, "ccc", 130, ours=False))
        assert changes(base, same)["mean_ttft_ms"].better is None
        slower = changes(base, slow)["mean_ttft_ms"]
        assert slower.better is False
        assert slower.low > 1

    def test_aiperfs_file_is_read_with_its_meaning(self, tmp_path: Path) -> None:
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
    def test_other_files_are_refused(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "x.json"
        file.write_text(text)
        with pytest.raises(DataError):
            load_result(str(file))
