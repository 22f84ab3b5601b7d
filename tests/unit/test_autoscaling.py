"""How many engine replicas are wanted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serve_app.engine.autoscaling import UTILIZATION, UtilizationPolicy, replicas_wanted


@pytest.mark.parametrize(
    ("utilization", "wanted"),
    [
        ([0.0], 0),
        ([0.7], 1),
        ([0.8], 2),
        ([3.5], 5),  # two and a half batches wait
        ([0.3, 0.3], 1),
        ([0.4, 0.4], 2),
        ([0.7, 0.7, 0.7], 3),
    ],
)
def test_the_fleet_is_sized_by_how_full_it_is(utilization: list[float], wanted: int) -> None:
    assert replicas_wanted(utilization, target_load=0.7) == wanted


def test_a_fleet_of_which_nothing_is_known_stays_as_it_is() -> None:
    facts = SimpleNamespace(aggregated_metrics={}, target_num_replicas=2)
    assert UtilizationPolicy(target_load=0.7)(facts) == (2, {})


def test_the_policy_asks_for_what_is_wanted() -> None:
    facts = SimpleNamespace(aggregated_metrics={UTILIZATION: {"a": 1.2, "b": 0.1}}, target_num_replicas=1)
    assert UtilizationPolicy(target_load=0.7)(facts) == (2, {})
