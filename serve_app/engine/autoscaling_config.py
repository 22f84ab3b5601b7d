"""How Serve is told to follow the load of the engines: which policy, its numbers, and Serve's own delays."""

from __future__ import annotations

from typing import Any

from ray import cloudpickle
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

import serve_app
import serve_app.scaling
from serve_app.config.replicas import ReplicasConfig
from serve_app.config.schema import AppConfig
from serve_app.engine.autoscaling import UtilizationPolicy
from serve_app.engine.scale_in import taking_least_loss
from serve_app.engine.zero_scaling import ToZero
from serve_app.scaling.slo_policy import SloPolicy

LONGEST_INTERVAL_S = {False: 10.0, True: 5.0}
"""Seconds between the reports of a replica, without and with an objective: Serve's own default, and what shows a queue
that grows before it is long."""

LEAST_RATE_WINDOW_S, RATE_WINDOW_S = 10.0, 60.0
"""Rates of arrivals are means over so long; shorter where `upscale_delay_s` asks for a quicker fleet."""

DOWNSCALE_DELAY_S = {False: 600.0, True: 300.0}
"""Without and with an objective, unless configured. Utilization says nothing of what a smaller fleet would do."""

LOOKS_BEFORE_ZERO = 6
"""Reports in the idle time at least: what was reported before a start is forgotten long before the engine may go."""


def autoscaling_config(config: AppConfig) -> AutoscalingConfig:
    """Serve's autoscaling of the engines between `replicas.min` and the most that there may be."""
    replicas = config.replicas
    interval_s = min(LONGEST_INTERVAL_S[config.slo.is_set], max(replicas.upscale_delay_s / 3, 0.5))
    policy = slo_policy(config) if config.slo.is_set else utilization_policy(replicas)
    initial = replicas.initial
    if replicas.may_sleep:
        interval_s = min(interval_s, max(replicas.idle_to_zero_s / LOOKS_BEFORE_ZERO, 0.5))
        policy.set_serialized_policy_def(_by_value(_to_zero(config)))
        # Serve gives a deployment up whose first replicas fail to start, and tries again and again where one has run:
        # the first start must not be the one that a request waits for.
        initial = replicas.initial or 1
    return AutoscalingConfig(
        min_replicas=replicas.min,
        max_replicas=replicas.most,
        initial_replicas=initial,
        metrics_interval_s=interval_s,
        look_back_period_s=3 * interval_s,
        policy=taking_least_loss(policy),
        # The policy for an objective has delays of its own, which know how long a start takes.
        upscale_delay_s=0.0 if config.slo.is_set else replicas.upscale_delay_s,
        downscale_delay_s=0.0 if config.slo.is_set else downscale_delay_s(config),
        downscale_to_zero_delay_s=0.0 if replicas.may_sleep else None,  # the replicas have measured the idle time
    )


def downscale_delay_s(config: AppConfig) -> float:
    """How long fewer engines must have been enough."""
    given = config.replicas.downscale_delay_s
    return DOWNSCALE_DELAY_S[config.slo.is_set] if given is None else given


def utilization_policy(replicas: ReplicasConfig) -> AutoscalingPolicy:
    """The policy where there is no objective."""
    return AutoscalingPolicy(policy_function=UtilizationPolicy, policy_kwargs={"target_load": replicas.target_load})


def _to_zero(config: AppConfig) -> ToZero:
    idle_s = config.replicas.idle_to_zero_s
    if not config.slo.is_set:
        return ToZero(UtilizationPolicy(config.replicas.target_load), idle_s)
    policy = SloPolicy(policy_settings(config))
    return ToZero(policy, idle_s, policy.fewest)


def _by_value(policy: ToZero) -> bytes:
    """The policy and all of our code that it uses: Serve copies one module only."""
    cloudpickle.register_pickle_by_value(serve_app)
    try:
        return bytes(cloudpickle.dumps(policy))
    finally:
        cloudpickle.unregister_pickle_by_value(serve_app)


def slo_policy(config: AppConfig) -> AutoscalingPolicy:
    """The policy with its settings. Serve copies the module of a policy to its controller, which cannot import the
    application: this one has several."""
    cloudpickle.register_pickle_by_value(serve_app.scaling)
    try:
        return AutoscalingPolicy(policy_function=SloPolicy, policy_kwargs={"settings": policy_settings(config)})
    finally:
        cloudpickle.unregister_pickle_by_value(serve_app.scaling)


def policy_settings(config: AppConfig) -> dict[str, Any]:
    """What `slo_policy.settings_of` reads."""
    replicas = config.replicas
    return {
        "objective": config.slo.model_dump(),
        "bounds": _bounds(replicas),
        "pace": {
            "up_after_s": replicas.upscale_delay_s,
            "down_after_s": downscale_delay_s(config),
            "rate_window_s": min(max(2 * replicas.upscale_delay_s, LEAST_RATE_WINDOW_S), RATE_WINDOW_S),
        },
    }


def _bounds(replicas: ReplicasConfig) -> dict[str, Any]:
    return {
        "minimum": replicas.min,
        "maximum": replicas.max,
        "gpus_per_replica": replicas.gpus_per_replica,
        "gpu_budget": replicas.gpu_budget,
        "schedule": [entry.words() for entry in replicas.schedule],
    }
