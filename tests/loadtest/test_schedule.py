"""When requests are sent: rates, spreads and phases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.load.schedule import Phase, parse_phases, phased_times, steady_times


def test_constant_times_are_even() -> None:
    times = steady_times(5, 4.0, math.inf, np.random.default_rng(0))
    assert times.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_spread_asked_for(burstiness: float) -> None:
    gaps = np.diff(steady_times(40_000, 10.0, burstiness, np.random.default_rng(1)))
    assert gaps.mean() == pytest.approx(0.1, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_phases_are_parsed() -> None:
    assert parse_phases("30s@2, 1m@2-8,5@0.5") == [Phase(30, 2, 2), Phase(60, 2, 8), Phase(5, 0.5, 0.5)]


@pytest.mark.parametrize("text", ["", "30s", "@2", "30s@x", "0s@2"])
def test_malformed_phases_are_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        parse_phases(text)


def test_each_phase_offers_what_it_promises() -> None:
    times = phased_times([Phase(100, 2, 2), Phase(100, 2, 10), Phase(50, 30, 30)], math.inf, np.random.default_rng(0))
    counts, _ = np.histogram(times, bins=[0, 100, 150, 200, 250])
    assert counts.tolist() == pytest.approx([200, 200, 400, 1500], abs=2)
    assert (np.diff(times) >= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 50), st.floats(0.1, 50), st.integers(0, 1000))
def test_times_stay_within_their_phases(start: float, end: float, seed: int) -> None:
    times = phased_times([Phase(5, start, end), Phase(5, end, start)], 1.0, np.random.default_rng(seed))
    assert (times >= 0).all()
    assert (times <= 10 + 1e-9).all()
