"""How many engine replicas: a pure function of their utilization, and the policy that carries it into Serve.

Serve's own policy counts calls. Here calls do not measure load: every ingress keeps one open to every replica, so with
enough ingresses idle replicas would look busy and never be stopped. Each replica therefore reports its own utilization,
as routing computes it: the share of its batch slots that is asked for, above 1 when requests wait.

Serve's controller runs this from a copy: the module imports nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

UTILIZATION = "utilization"
"""The number that a replica reports (`record_autoscaling_stats`)."""


def replicas_wanted(utilization: Collection[float], target_load: float) -> int:
    """How many replicas would be at `target_load` or below with all of this.

    Replicas that have not reported yet count as empty: what they will take is still in the others' queues.
    """
    # Rounded first: three replicas at 0.7 are three, though the floating-point sum is a little more.
    return math.ceil(round(sum(utilization) / target_load, 6))


class UtilizationPolicy:
    """`replicas_wanted` as Serve's autoscaling policy; limits and delays are Serve's."""

    def __init__(self, target_load: float) -> None:
        self._target_load = target_load

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and no state."""
        reported = (context.aggregated_metrics or {}).get(UTILIZATION)
        if not reported:
            return context.target_num_replicas, {}  # no report yet: no reason to change
        return replicas_wanted(list(reported.values()), self._target_load), {}
