"""What one ingress exports of the trial of a canary. Every label is an enum's."""

from __future__ import annotations

from ray.serve import metrics

from serve_app.engine.metrics import TotalCounter
from serve_app.ingress.canary.trial import Directive
from serve_app.ingress.canary.verdict import TrialState
from serve_app.router.canary_arm import Arm, CanaryArm


class CanaryGauges:
    """Set with each word of the judge."""

    def __init__(self) -> None:
        self._share = metrics.Gauge(
            "step_canary_share", description="Share of the sessions that go to the canary; 0 without one."
        )
        self._state = metrics.Gauge(
            "step_canary_state",
            description="1 for the state of the canary's trial: trying, promoted, rolled_back; 0 for the others.",
            tag_keys=("state",),
        )
        self._requests = TotalCounter(
            "step_canary_requests",
            "Sequences while a canary is tried, by arm: canary, stable (the rest of the fleet), fallback (of the "
            "canary's share, and no canary could take it).",
            ("arm",),
        )

    def set(self, directive: Directive, arm: CanaryArm) -> None:
        """What the judge says, and what this ingress has done."""
        self._share.set(directive.share)
        for state in TrialState:
            is_it = bool(directive.trial) and directive.state == state.value
            self._state.set(float(is_it), tags={"state": state.value})
        for one in Arm:
            self._requests.set_total(arm.chosen[one], tags={"arm": one.value})
