"""No engine while nobody asks: a pure rule around whatever policy sizes the fleet, in Serve's policy hook.

The policy decides as long as there is something to do. When every engine has been idle for `idle_s`, the fleet goes to
zero; Serve takes the last engine only when one is left, the others after its own delay. How one comes back is no matter
of a policy: a request that waits at an ingress is a call that waits in Serve, and Serve starts a replica for that at
once (`router/wake.py`).

Serve's controller runs this from a copy, in which all of our modules are (`engine/autoscaling_config.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

IDLE_S = "idle_s"
"""The number that a replica reports (`record_autoscaling_stats`): how long it has had no request; 0 if it has one."""

Policy = Callable[[Any], tuple[float, dict[str, Any]]]
"""Serve's: from an `AutoscalingContext` to the number of replicas wanted, and a state to keep."""


def may_sleep(idle_s: Mapping[object, float], running: int, idle_to_zero_s: float) -> bool:
    """Whether all of the `running` replicas have said that they have been idle for so long."""
    return 0 < running <= len(idle_s) and min(idle_s.values()) >= idle_to_zero_s


def latest(series: Mapping[object, Sequence[Any]]) -> dict[object, float]:
    """The last value of each replica's series. Not their mean, which Serve aggregates: a request a moment ago ends
    the idle time, however long that was."""
    return {replica: points[-1].value for replica, points in series.items() if points}


class ToZero:
    """`policy`, and no engine after `idle_to_zero_s` without a request, unless a schedule asks for some: `fewest` says
    for how many."""

    def __init__(
        self, policy: Policy, idle_to_zero_s: float, fewest: Callable[[Any], int] = lambda _context: 0
    ) -> None:
        self._policy = policy
        self._idle_to_zero_s = idle_to_zero_s
        self._fewest = fewest

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """The number of replicas wanted, and the policy's state."""
        wanted, state = self._policy(context)
        if not context.current_num_replicas:
            return wanted, state  # it sleeps, or the first one is starting: no load is known
        reported = latest((context.raw_metrics or {}).get(IDLE_S, {}))
        if may_sleep(reported, context.current_num_replicas, self._idle_to_zero_s):
            return self._fewest(context), state
        return max(wanted, 1), state  # a policy sees load, and may call a request now and then none
