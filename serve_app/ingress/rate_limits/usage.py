"""What the requests of one key use at this ingress, of each of its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from serve_app.ingress.rate_limits.leases import LEASE_S, Lease, Report
from serve_app.ingress.rate_limits.window import UsageWindow
from serve_app.protocol.errors import LimitKind
from serve_app.router.admission import MOST_RETRY_S
from serve_app.router.request_context import RequestContext

UNMEASURED_RETRY_S = 5.0
"""When to come back for a place among a key's requests at a time, before one has finished."""


@dataclass
class Meter:
    """One limit of a key at this ingress."""

    limit: int
    lease: Lease
    demand: int = 0
    """Units asked for since the last report."""
    last_demand: int = 0
    borrowed: int = 0
    """Requests admitted beyond the ceiling in this lease."""
    reported: Report | None = None
    """What the last report said."""


@dataclass(eq=False)
class Running:
    """One request of a key. `tokens` are those that have been counted."""

    context: RequestContext
    tokens: int = 0


def _windows() -> dict[LimitKind, UsageWindow]:
    return {LimitKind.REQUESTS: UsageWindow(), LimitKind.TOKENS: UsageWindow()}


@dataclass
class KeyUsage:
    """A key at this ingress."""

    meters: dict[LimitKind, Meter] = field(default_factory=dict)
    windows: dict[LimitKind, UsageWindow] = field(default_factory=_windows)
    running: set[Running] = field(default_factory=set)
    tokens_read_s: float = -math.inf
    mean_s: float | None = None
    """How long its requests run, by the last ten or so."""
    mean_tokens: float = 1000.0
    """The same of their tokens; a guess until some have ended."""

    def used(self, kind: LimitKind, now_s: float) -> int:
        """How much of a limit its requests here use."""
        window = self.windows.get(kind)
        return len(self.running) if window is None else window.used(now_s)

    def has_room(self, kind: LimitKind, now_s: float) -> bool:
        """Whether the limit is not used up, by what the other ingresses have last reported."""
        meter = self.meters[kind]
        return self.used(kind, now_s) + meter.lease.used_elsewhere < meter.limit

    def count_tokens(self, running: Running, now_s: float) -> None:
        """Count the tokens that a request has had since it was last looked at."""
        sequences = running.context.sequences
        tokens = sum(one.prompt_tokens + one.output_tokens - one.resumed_tokens for one in sequences)
        if tokens > running.tokens:
            self.windows[LimitKind.TOKENS].add(tokens - running.tokens, now_s)
            running.tokens = tokens

    def note_ended(self, running: Running, took_s: float) -> None:
        """A request that was submitted has ended."""
        self.mean_s = took_s if self.mean_s is None else _moved(self.mean_s, took_s)
        self.mean_tokens = _moved(self.mean_tokens, running.tokens)

    def retry_s(self, kind: LimitKind, now_s: float) -> float:
        """When there is room for one more request; no longer than clients wait, by when all use has left the window."""
        return min(self._room_in_s(kind, now_s), MOST_RETRY_S)

    def _room_in_s(self, kind: LimitKind, now_s: float) -> float:
        meter = self.meters[kind]
        excess = self.used(kind, now_s) + meter.lease.used_elsewhere + 1 - meter.limit
        if excess <= 0:
            return 2 * LEASE_S  # what other ingresses hold and do not use comes here by then
        window = self.windows.get(kind)
        if window is None:
            return UNMEASURED_RETRY_S if self.mean_s is None else self.mean_s / meter.limit
        here_s, elsewhere_s = window.frees_in_s(excess, now_s), meter.lease.frees_elsewhere_in_s
        if here_s is not None:
            return here_s
        return MOST_RETRY_S if elsewhere_s is None else elsewhere_s + 2 * LEASE_S

    def report(self, kind: LimitKind, now_s: float, *, in_any_case: bool) -> Report | None:
        """What is to be reported of a limit; None where nothing has changed and nothing was asked for."""
        meter, window = self.meters[kind], self.windows.get(kind)
        # It ebbs: a client that pauses for a second is not done.
        meter.last_demand, meter.demand = max(meter.demand, meter.last_demand // 2), 0
        frees_in_s = window.frees_in_s(1, now_s) if window is not None else None
        new = Report(meter.limit, meter.lease.ceiling, self.used(kind, now_s), meter.last_demand, frees_in_s)
        if not in_any_case and new.says_the_same(meter.reported):
            return None
        meter.reported = new
        return new

    def is_quiet(self, now_s: float) -> bool:
        """Whether nothing of it changes by itself: it has no requests, and its use has left the windows."""
        return not self.running and not any(
            one.last_demand or self.used(kind, now_s) for kind, one in self.meters.items()
        )


def _moved(mean: float, latest: float) -> float:
    return mean + (latest - mean) / 10
