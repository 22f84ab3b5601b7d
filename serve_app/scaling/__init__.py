"""How many engines keep what users are to feel. Pure: facts and what was decided before in, a decision out.

Serve's controller runs the policy from a copy, and cannot import the application: this package imports nothing of ours.
"""

from __future__ import annotations

from serve_app.scaling.facts import (
    Bounds,
    Cause,
    Decision,
    FleetFacts,
    Objective,
    Pace,
    ReplicaFacts,
    ScalingState,
    Settings,
)
from serve_app.scaling.policy import decide
from serve_app.scaling.reports import ReplicaReport
from serve_app.scaling.schedule import ScheduleRule, schedule_rule

__all__ = [
    "Bounds",
    "Cause",
    "Decision",
    "FleetFacts",
    "Objective",
    "Pace",
    "ReplicaFacts",
    "ReplicaReport",
    "ScalingState",
    "ScheduleRule",
    "Settings",
    "decide",
    "schedule_rule",
]
