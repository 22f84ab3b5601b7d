"""A fleet that may have no engine while nobody asks: what it is like, and how long a request waits for an engine. Pure.

A load balancer must go on sending requests to a fleet that is asleep: the next one starts an engine. It must not where
an engine should be up and is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from serve_app.protocol.messages import ReplicaLoad

LATE_FACTOR, LATE_EXTRA_S = 2.0, 60.0
"""A start is late when it takes longer than so many times the last one, and a minute. Node and page cache may be other
ones than then."""

UNKNOWN_LATE_S = 3600.0
"""A start is late after that where none was measured: as long as an engine may take by default."""


class FleetState(StrEnum):
    """The engines, as one ingress sees them."""

    UP = "up"
    """One takes work at least."""
    ASLEEP = "asleep"
    """There is none because nobody asks. The next request starts one."""
    STARTING = "starting"
    """There is none yet: a request has asked for one."""
    LATE = "late"
    """The same, and the start takes much longer than the last one."""
    FAILED = "failed"
    """Serve has given up starting one."""
    DOWN = "down"
    """There is none, and there should be."""


SERVES = (FleetState.UP, FleetState.ASLEEP, FleetState.STARTING)
"""In these a request gets an answer, at once or after a start."""


@dataclass(frozen=True)
class FleetFacts:
    """What an ingress knows of its engines.

    `is_up`: one takes work. `may_sleep`: there need not be one. `start_s` is how long the last start took, None if none
    was seen; `elapsed_s` how long ago a request asked for an engine, None if none did, and where there should always be
    one, for how long there has been none. `failure`: why Serve starts
    none, empty if it does. `waiting` requests wait for an engine here.
    """

    is_up: bool
    may_sleep: bool
    start_s: float | None = None
    elapsed_s: float | None = None
    failure: str = ""
    waiting: int = 0

    @property
    def state(self) -> FleetState:
        """The state of the fleet."""
        if self.is_up:
            return FleetState.UP
        if not self.may_sleep:
            return FleetState.DOWN
        if self.failure:
            return FleetState.FAILED
        if self.elapsed_s is None:
            return FleetState.ASLEEP
        if self.elapsed_s <= self._late_s():
            return FleetState.STARTING
        # Whoever asked has left, perhaps before Serve knew of it: the next request asks again.
        return FleetState.LATE if self.waiting else FleetState.ASLEEP

    @property
    def left_s(self) -> float | None:
        """About how long a request that comes now waits for an engine, in seconds; None where nothing is known to
        tell it from."""
        if self.is_up:
            return 0.0
        if self.start_s is None or self.failure:
            return None
        left_s = self.start_s - (self.elapsed_s or 0.0)
        return left_s if left_s > 0 else None

    def sentence(self) -> str:
        """`asleep: the next request starts an engine, which is up in about 40 s`."""
        left_s = self.left_s
        about = f"in about {max(left_s, 1.0):.0f} s" if left_s is not None else "(after a time that is not known yet)"
        match self.state:
            case FleetState.ASLEEP:
                return f"asleep: the next request starts an engine, which is up {about}"
            case FleetState.STARTING:
                return f"starting: an engine should be up {about}"
            case FleetState.LATE:
                return f"late: a start was asked for {self.elapsed_s or 0.0:.0f} s ago, and took {self._last()} before"
            case FleetState.FAILED:
                return f"failed: {self.failure}"
            case FleetState.UP | FleetState.DOWN:
                return str(self.state)

    def _late_s(self) -> float:
        return UNKNOWN_LATE_S if self.start_s is None else LATE_FACTOR * self.start_s + LATE_EXTRA_S

    def _last(self) -> str:
        return "an unknown time" if self.start_s is None else f"{self.start_s:.0f} s"


def queue_sentence(load: ReplicaLoad) -> str:
    """What waits to be started at a replica, for a client whose request has no token yet: it is one of them, or it is
    being computed. Empty where nothing waits. Which is next is the replica's choice (`engine/fair_queue.py`)."""
    if not load.queued:
        return ""
    words = "1 request waits" if load.queued == 1 else f"{load.queued} requests wait"
    words += " at this engine"
    if load.prefill_tokens_per_s:
        words += f", and the prompts there take about {load.queued_prefill_tokens / load.prefill_tokens_per_s:.0f} s"
    return words
