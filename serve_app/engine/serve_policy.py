"""Serve's autoscaling configuration of the engines: bounds, delays, and the policy as its controller runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import cloudpickle
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

import serve_app
from serve_app.config.replicas import ReplicasConfig
from serve_app.engine.zero_scaling import ToZero

LONGEST_INTERVAL_S = 10.0
"""Serve's own default of the time between two looks at the load, unless the delays ask for quicker ones."""

LOOKS_BEFORE_ZERO = 6
"""Looks in the idle time: what was reported before a start is forgotten long before the engine may go again."""


def autoscaling(
    replicas: ReplicasConfig, policy_class: type[Any], policy_kwargs: Mapping[str, Any]
) -> AutoscalingConfig:
    """That of this configuration, with a policy of this class inside its bounds."""
    interval_s = min(LONGEST_INTERVAL_S, max(replicas.upscale_delay_s / 3, 0.5))
    policy = AutoscalingPolicy(policy_function=policy_class, policy_kwargs=dict(policy_kwargs))
    options: dict[str, Any] = {"initial_replicas": replicas.initial}
    if replicas.may_sleep:
        interval_s = min(interval_s, max(replicas.idle_to_zero_s / LOOKS_BEFORE_ZERO, 0.5))
        policy.set_serialized_policy_def(_by_value(ToZero(policy_class(**policy_kwargs), replicas.idle_to_zero_s)))
        options = {
            # Serve gives a deployment up whose first replicas fail to start, and tries again and again where one has
            # run: the first start must not be the one that a request waits for.
            "initial_replicas": replicas.initial or 1,
            "downscale_to_zero_delay_s": 0.0,  # the rule has measured the idle time, at the replicas
        }
    return AutoscalingConfig(
        min_replicas=replicas.min,
        max_replicas=replicas.max,
        policy=policy,
        metrics_interval_s=interval_s,
        look_back_period_s=3 * interval_s,
        upscale_delay_s=replicas.upscale_delay_s,
        downscale_delay_s=replicas.downscale_delay_s,
        **options,
    )


def _by_value(policy: object) -> bytes:
    """The policy and all of our code that it uses: the controller may have no copy of ours."""
    cloudpickle.register_pickle_by_value(serve_app)
    try:
        return bytes(cloudpickle.dumps(policy))
    finally:
        cloudpickle.unregister_pickle_by_value(serve_app)
