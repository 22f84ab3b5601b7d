"""When there is evidence for and against a canary."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.config.pools import CanaryConfig
from serve_app.ingress.canary.samples import ArmSums, LogSums, Samples
from serve_app.ingress.canary.verdict import TrialState, error_difference, judge, ratio

CONFIG = CanaryConfig(for_s=600, min_requests=100)


def arm(
    count: int,
    seed: int = 1,
    *,
    failures: float = 0.0,
    ttft_s: float = 1.0,
    tpot_s: float = 0.02,
    tokens_per_step: float = 2.5,
    spread: float = 0.8,
) -> ArmSums:
    drawn = random.Random(seed)
    found = ArmSums()
    for _ in range(count):
        found.attempts += 1
        if drawn.random() < failures:
            found.failed += 1
            continue
        found.ttft_s.add(ttft_s * drawn.lognormvariate(0, spread))
        found.tpot_s.add(tpot_s * drawn.lognormvariate(0, 0.3))
        found.tokens_per_step.add(tokens_per_step * drawn.lognormvariate(0, 0.1))
    return found


def verdict(canary: ArmSums, stable: ArmSums, tried_s: float = 700) -> TrialState:
    return judge(Samples(canary, stable), tried_s, CONFIG).state


def test_one_that_is_as_good_is_promoted_after_its_time_and_not_before() -> None:
    good = Samples(arm(500), arm(9500, 2))
    assert judge(good, 599, CONFIG).state is TrialState.TRYING
    told = judge(good, 601, CONFIG)
    assert told.state is TrialState.PROMOTED
    assert "500 requests of the canary, 9500 of the rest" in told.reason


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        (arm(500, failures=0.1), "requests failed"),
        (arm(500, ttft_s=1.5, spread=0.3), "time to first token"),
        (arm(500, tpot_s=0.03), "time per output token"),
        (arm(500, tokens_per_step=1.5), "steps per token"),
    ],
    ids=["errors", "ttft", "tpot", "acceptance"],
)
def test_one_that_is_worse_is_rolled_back_at_once_with_the_figure(worse: ArmSums, told: str) -> None:
    found = judge(Samples(worse, arm(9500, 2)), 10, CONFIG)
    assert found.state is TrialState.ROLLED_BACK
    assert told in found.reason


def test_one_that_always_fails_is_rolled_back_after_ten_requests() -> None:
    broken = ArmSums(attempts=10, failed=10)
    assert verdict(ArmSums(attempts=9, failed=9), arm(200), 5) is TrialState.TRYING
    assert verdict(broken, arm(200), 5) is TrialState.ROLLED_BACK


def test_a_few_requests_prove_nothing() -> None:
    assert verdict(arm(20, ttft_s=1.5), arm(400, 2), 10) is TrialState.TRYING
    told = judge(Samples(arm(20), arm(400, 2)), 6000, CONFIG)
    assert told.state is TrialState.TRYING
    assert "20 of 100 requests" in told.reason


def test_one_on_the_limit_is_neither_promoted_nor_rolled_back() -> None:
    told = judge(Samples(arm(300, ttft_s=1.2), arm(9500, 2)), 6000, CONFIG)
    assert told.state is TrialState.TRYING
    assert "more requests are needed: time to first token is" in told.reason


def test_a_canary_that_takes_nothing_is_rolled_back() -> None:
    told = judge(Samples(ArmSums(), arm(400), fallbacks=12), 10, CONFIG)
    assert told.state is TrialState.ROLLED_BACK
    assert "no canary could take 12" in told.reason


def test_a_good_one_is_hardly_ever_rolled_back_though_it_is_looked_at_all_the_time() -> None:
    """40 trials of 300 looks each, with the canary exactly as good as the rest."""
    alarms = 0
    for seed in range(40):
        drawn = random.Random(seed)
        samples = Samples()
        for _ in range(300):
            for one, count in ((samples.canary, 1), (samples.stable, 19)):
                for _ in range(count):
                    one.attempts += 1
                    one.failed += drawn.random() < 0.01
                    one.ttft_s.add(drawn.lognormvariate(0, 1.0))
            alarms += judge(samples, 10, CONFIG).state is TrialState.ROLLED_BACK
    assert alarms == 0


@given(st.lists(st.floats(0.001, 1000), min_size=20, max_size=60), st.floats(0.1, 10))
@settings(max_examples=50)
def test_a_ratio_of_means_is_found_and_lies_in_its_interval(values: list[float], factor: float) -> None:
    ours, theirs = LogSums(), LogSums()
    for value in values:
        ours.add(value * factor)
        theirs.add(value)
    found = ratio(ours, theirs, 2.0)
    assert found is not None
    assert found.value == pytest.approx(factor)
    assert found.low <= found.value <= found.high


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 50), st.integers(1, 50))
def test_a_difference_of_failures_lies_in_its_interval(a: int, more_a: int, b: int, more_b: int) -> None:
    found = error_difference(ArmSums(a + more_a, a), ArmSums(b + more_b, b), 4.0)
    assert -1 <= found.low <= found.value <= found.high <= 1
