"""How often an ingress lists the replicas."""

from __future__ import annotations

import pytest

from serve_app.router.attempts import DISCOVERY_PERIOD_S, LISTED_PER_S, discovery_period_s


@pytest.mark.parametrize("replicas", [0, 1, 16, LISTED_PER_S])
def test_a_small_fleet_is_listed_every_second(replicas: int) -> None:
    assert discovery_period_s(replicas) == DISCOVERY_PERIOD_S


@pytest.mark.parametrize("replicas", [64, 125, 1000])
def test_a_large_fleet_costs_an_ingress_no_more_calls_a_second(replicas: int) -> None:
    assert replicas / discovery_period_s(replicas) == pytest.approx(LISTED_PER_S)
