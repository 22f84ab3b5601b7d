"""How Serve is told to follow the load of the engines: which policy, its numbers, and Serve's own delays."""

from __future__ import annotations

from typing import Any

from ray import cloudpickle
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

import serve_app.scaling
from serve_app.config.replicas import ReplicasConfig
from serve_app.config.schema import AppConfig
from serve_app.engine.autoscaling import UtilizationPolicy
from serve_app.engine.scale_in import taking_least_loss
from serve_app.scaling.slo_policy import SloPolicy

LONGEST_INTERVAL_S = {False: 10.0, True: 5.0}
"""Seconds between the reports of a replica, without and with an objective: Serve's own default, and what shows a queue
that grows before it is long."""

LEAST_RATE_WINDOW_S = 10.0


def autoscaling_config(config: AppConfig) -> AutoscalingConfig:
    """Serve's autoscaling of the engines between `replicas.min` and the most that there may be."""
    replicas = config.replicas
    interval_s = min(LONGEST_INTERVAL_S[config.slo.is_set], max(replicas.upscale_delay_s / 3, 0.5))
    options: dict[str, Any] = {
        "min_replicas": replicas.min,
        "max_replicas": replicas.most,
        "initial_replicas": replicas.initial,
        "metrics_interval_s": interval_s,
        "look_back_period_s": 3 * interval_s,
    }
    if config.slo.is_set:
        # The policy has delays of its own, which know how long a start takes.
        policy = taking_least_loss(slo_policy(config))
        return AutoscalingConfig(**options, policy=policy, upscale_delay_s=0.0, downscale_delay_s=0.0)
    return AutoscalingConfig(
        **options,
        policy=taking_least_loss(
            AutoscalingPolicy(policy_function=UtilizationPolicy, policy_kwargs={"target_load": replicas.target_load})
        ),
        upscale_delay_s=replicas.upscale_delay_s,
        downscale_delay_s=replicas.downscale_delay_s,
    )


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
            "down_after_s": replicas.downscale_delay_s,
            "rate_window_s": max(2 * replicas.upscale_delay_s, LEAST_RATE_WINDOW_S),
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
