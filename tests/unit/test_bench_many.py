"""The bench of an ingress over many engines: its table, and what it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.many import fleet
from bench.many.command import Measured, as_text, growth
from serve_app.config.profile import load
from serve_app.config.yaml_lines import YamlDocument

ONE = Measured(1, 10_000, 60.0, 20.0, 5.0, 2.0, 1.0, 700_000_000)
RUNS = [
    ONE,
    replace(ONE, engines=64, cpu_ms=66.0),
    replace(ONE, engines=64, cpu_ms=90.0),
    replace(ONE, engines=64, cpu_ms=60.0),
    replace(ONE, cpu_ms=61.0),
]


def test_growth_compares_the_cheapest_round_of_the_most_engines_with_that_of_the_fewest() -> None:
    assert growth(RUNS) == pytest.approx(60.0 / 60.0)
    assert growth([replace(one, cpu_ms=one.cpu_ms * one.engines) for one in RUNS]) == pytest.approx(64.0)


def test_the_table_has_a_line_for_each_number_of_engines() -> None:
    _, first, last = as_text(RUNS).splitlines()
    assert first.split()[:4] == ["1", "60.0", "(60.0-61.0)", "1.00"]
    assert last.split()[:4] == ["64", "60.0", "(60.0-90.0)", "1.00"]


def test_the_table_of_the_idle_fleet_has_a_line_for_each_role_and_number() -> None:
    found = [fleet.Idle(count, {"ingress": 2}, {"ingress": 5.0 * count}, {"ingress": 10**9}) for count in (2, 8)]
    assert [line.split() for line in fleet.as_text(found).splitlines()[1:]] == [
        ["ingress", "2", "2", "10.0", "1,000"],
        ["ingress", "8", "2", "40.0", "1,000"],
    ]


def test_the_settings_of_the_idle_fleet_are_a_configuration() -> None:
    config = load(YamlDocument("bench", {"profile": "cpu-demo", **fleet.settings()}, {}), None)
    assert config.ingress.min_replicas == fleet.INGRESSES
