"""How many ingress replicas: a pure function of what their event loops do, and the policy that carries it into Serve.

An ingress is one thread. What it can carry depends on tokens per second and on the sizes of requests, so requests are
no measure of it. Each ingress therefore reports how busy its event loop is and how late (`event_loop.py`). Work moves
with connections: the sum of the busy ratios is the work, and enough ingresses are wanted to keep their mean at the
target.

* **Room for requests.** Serve answers 503 beyond `max_ongoing_requests`, however little those requests do. Their share
  of it is held to the same target.
* **Lag.** A loop can be late though its thread uses little CPU time: a long call now and then, other threads that hold
  the interpreter's lock, a node without a free core. Then one more is wanted than the work needs, and never more than
  one: on a node without a free core each further ingress would make it worse.
* **No flapping.** Between the load at which an ingress is added and that at which one is stopped is a gap, for the work
  and for the lag. Serve's delays come on top.
* **Silence.** A replica without a report counts as idle, and while there is one none is stopped.

Serve's controller runs this from a copy: the module imports nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

BUSY_RATIO, LAG_S = "event_loop_busy_ratio", "event_loop_lag_s"
"""The numbers that a replica reports (`record_autoscaling_stats`)."""

LAG_LIMIT_S = 0.25
"""An event loop that is this late in every report of Serve's look-back period lacks time. A busy machine alone stays
below it (docs/decisions/0024); a reader sees a stream stop for so long."""

RELEASE_RATIO = 0.75
"""An ingress is stopped where the others would be at this share of the target or less: with the default target, the
last two are one again at 0.45 of a core, having become two at 0.6."""

LAG_RELEASE_RATIO = 0.5
"""The ingress that lag has added stays until the lag is at this share of its limit."""


@dataclass(frozen=True)
class IngressLoad:
    """What is known of all ingress replicas."""

    target_replicas: int
    """How many there are to be at present; some may still be starting."""
    busy_ratios: Collection[float]
    """Of those that reported: the share of one core's time that their event loop used."""
    lag_s: float
    """How late the worst of their event loops is."""
    requests_ratio: float
    """All requests, over what one ingress may hold."""
    silent_replicas: int
    """How many run and have not reported."""


def ingresses_wanted(load: IngressLoad, target_load: float) -> int:
    """How many ingresses keep the mean load at `target_load` or below, and the lag low; at least one."""
    now = load.target_replicas
    work = max(sum(load.busy_ratios), load.requests_ratio)
    needed = _replicas(work, target_load)
    if needed > now:
        return needed
    kept = now if load.silent_replicas else min(now, _replicas(work, RELEASE_RATIO * target_load))
    lag_limit_s = LAG_LIMIT_S if now == needed else LAG_RELEASE_RATIO * LAG_LIMIT_S
    return max(kept, needed + 1) if load.lag_s > lag_limit_s else kept


def _replicas(work: float, load_of_each: float) -> int:
    # Rounded first: three replicas at 0.6 are three, though the floating-point sum is a little more.
    return max(1, math.ceil(round(work / load_of_each, 6)))


class EventLoopPolicy:
    """`ingresses_wanted` as Serve's autoscaling policy; bounds and delays are Serve's."""

    def __init__(self, target_load: float, max_ongoing_requests: int) -> None:
        self._target_load = target_load
        self._max_ongoing_requests = max_ongoing_requests

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and no state."""
        busy = (context.aggregated_metrics or {}).get(BUSY_RATIO)
        if not busy:
            return context.target_num_replicas, {}  # no report yet: no reason to change
        # The lowest report of the period, not its mean: one stall of a second is not load.
        reports = (context.raw_metrics or {}).get(LAG_S, {}).values()
        load = IngressLoad(
            target_replicas=context.target_num_replicas,
            busy_ratios=list(busy.values()),
            lag_s=max((min(point.value for point in series) for series in reports if series), default=0.0),
            requests_ratio=context.total_num_requests / self._max_ongoing_requests,
            silent_replicas=len(set(context.running_replicas) - set(busy)),
        )
        return ingresses_wanted(load, self._target_load), {}
