"""When the last engine goes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve.config import AutoscalingConfig

from serve_app.config.hardware import NodeGpus
from serve_app.config.profile import load_config
from serve_app.config.schema import AppConfig
from serve_app.engine.autoscaling import UTILIZATION, UtilizationPolicy
from serve_app.engine.autoscaling_config import autoscaling_config
from serve_app.engine.zero_scaling import IDLE_S, ToZero


@dataclass
class Point:
    value: float


@dataclass
class Context:
    """The part of Serve's `AutoscalingContext` that is read. `idle_s` has the reports of each replica."""

    idle_s: dict[str, list[float]]
    current_num_replicas: int = 1
    target_num_replicas: int = 1
    load: dict[str, float] = field(default_factory=dict)
    current_time: float = 1_000_000.0
    last_scale_up_time: float | None = None
    last_scale_down_time: float | None = None
    capacity_adjusted_max_replicas: int = 3
    capacity_adjusted_min_replicas: int = 0

    @property
    def raw_metrics(self) -> dict[str, Any]:
        return {IDLE_S: {name: [Point(value) for value in values] for name, values in self.idle_s.items()}}

    @property
    def aggregated_metrics(self) -> dict[str, Any]:
        return {UTILIZATION: self.load}


def wanted(context: Context) -> float:
    return ToZero(UtilizationPolicy(target_load=0.7), idle_to_zero_s=60)(context)[0]


@pytest.mark.parametrize(
    ("context", "replicas"),
    [
        (Context({"a": [59, 61]}, load={"a": 0.0}), 0),
        (Context({"a": [59]}, load={"a": 0.0}), 1),
        (Context({"a": [900, 901, 0]}, load={"a": 0.0}), 1),  # a request came a moment ago
        (Context({"a": [61]}, 2, 2, load={"a": 0.0}), 1),  # the other one has not reported yet
        (Context({"a": [61], "b": [61]}, 2, 2, load={"a": 0.0, "b": 0.0}), 0),
        (Context({"a": [61], "b": [2]}, 2, 2, load={"a": 0.0, "b": 0.9}), 2),
        (Context({}, load={}), 1),
        (Context({}, 0, 0), 0),  # asleep
        (Context({}, 0, 1), 1),  # starting
    ],
)
def test_an_engine_goes_when_all_have_been_idle_for_so_long(context: Context, replicas: int) -> None:
    assert wanted(context) == replicas


def test_the_rule_changes_nothing_but_the_end() -> None:
    for load in (0.1, 0.7, 1.5, 7.0):
        context = Context({"a": [0.0]}, load={"a": load})
        assert wanted(context) == UtilizationPolicy(target_load=0.7)(context)[0]


def app(**settings: object) -> AppConfig:
    return load_config({"profile": "cpu-demo", **settings}, [NodeGpus("head", None, 0)])


def rule_of(config: AutoscalingConfig) -> Any:
    """What is in the policy that chooses which replica goes (`engine/scale_in.py`)."""
    return cloudpickle.loads(config.policy.get_policy()._pickled)


def test_serve_gets_the_rule_around_the_policy_and_the_bounds() -> None:
    config = autoscaling_config(app(replicas={"min": 0, "max": 3, "idle_to_zero_s": 30}))
    policy = rule_of(config)
    assert policy(Context({"a": [31]}, load={"a": 0.0}))[0] == 0
    assert (config.min_replicas, config.max_replicas, config.initial_replicas) == (0, 3, 1)
    assert config.downscale_to_zero_delay_s == 0
    assert config.look_back_period_s < 30


def test_a_fleet_that_never_sleeps_has_its_policy_as_it_is() -> None:
    config = autoscaling_config(app(replicas={"min": 1, "max": 3}))
    assert type(rule_of(config)) is type
    assert config.initial_replicas is None


def test_a_schedule_holds_engines_that_nobody_asks() -> None:
    always = {"from": "00:00", "to": "00:00", "min": 2}
    replicas = {"min": 0, "max": 3, "idle_to_zero_s": 30}
    for schedule, wanted in (([always], 2), ([], 0)):
        config = autoscaling_config(app(replicas={**replicas, "schedule": schedule}, slo={"ttft_p95_s": 3}))
        policy = rule_of(config)
        assert policy(Context({"a": [31], "b": [31]}, 2, 2))[0] == wanted
        assert policy(Context({}, 0, 0))[0] in (0, wanted)


@pytest.mark.parametrize("slo", [{}, {"ttft_p95_s": 3}])
def test_the_controller_needs_none_of_our_modules(slo: dict[str, float]) -> None:
    config = autoscaling_config(app(replicas={"min": 0, "max": 2}, slo=slo))
    program = (
        "import sys, pickle\n"
        "policy = pickle.loads(pickle.loads(sys.stdin.buffer.read())._pickled)\n"
        "assert not [name for name in sys.modules if name.startswith('serve_app')]\n"
        "print(policy._idle_to_zero_s)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program],
        input=config.policy.get_serialized_policy_def(),
        capture_output=True,
        check=False,
    )
    assert ended.stdout.split() == [b"900.0"], ended.stderr.decode()
