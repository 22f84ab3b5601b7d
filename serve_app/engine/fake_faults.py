"""What goes wrong in a fake engine, and when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class FaultKind(Enum):
    """What goes wrong."""

    CRASH = "crash"
    HANG = "hang"
    SPIN = "spin"
    """It makes no step any more, and burns CPU time all the same."""
    SLOW = "slow"


@dataclass(frozen=True)
class Fault:
    """Something that happens to the engine when a request is about to give its token number `at_token` (from 0).

    It happens for the requests named in `request_ids`, and for every `every`-th request that starts (0: for none).
    Unless `on_resume`, it spares a request that already died elsewhere: one fault then costs one engine, not the fleet.
    `factor` is how many times longer steps take from then on while the request runs (`SLOW`).
    """

    kind: FaultKind
    at_token: int
    request_ids: frozenset[str] = frozenset()
    every: int = 0
    factor: float = 10.0
    on_resume: bool = False
