"""Admits the requests of keys with limits, and counts what they use, at one ingress.

A request is checked before anything is done for it, and counts from then on, whatever becomes of it. Its tokens are not
known yet: it is admitted while the key has any left, and its prompt counts when it is submitted, its answer as it is
generated. So a key may go into debt, by the requests that it has running, and waits until that has left the window.
Tokens are read off the running requests when somebody asks, so that a token costs nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from serve_app.ingress.auth import KeyLimits
from serve_app.ingress.rate_limits.leases import Lease, Report
from serve_app.ingress.rate_limits.usage import KeyUsage, Meter, Running
from serve_app.protocol.errors import LimitKind, RateLimited
from serve_app.router.request_context import RequestContext

READ_TOKENS_EVERY_S = 0.1
"""How often the running requests of a key are looked through at most: there may be hundreds."""

BORROWED_PER_LEASE = 1
"""So many requests at a time of each ingress may be too many, for one lease."""

FIELDS = {
    LimitKind.REQUESTS: "requests_per_minute",
    LimitKind.TOKENS: "tokens_per_minute",
    LimitKind.CONCURRENT: "max_concurrent",
}
"""Where a key's limits have each."""

Leases = dict[tuple[str, LimitKind], Lease]
"""By the key's name and the limit."""


@dataclass(frozen=True)
class Reports:
    """What an ingress reports, by the key's name and the limit: all that it has, or what has changed since it last did
    so."""

    of: Mapping[tuple[str, LimitKind], Report]
    is_complete: bool


class Limits(Protocol):
    """The limits of keys (`ingress/keys_file.py`)."""

    def limits(self) -> Mapping[str, KeyLimits]:
        """Those of all keys that have some, now."""


@dataclass(frozen=True)
class Standing:
    """How a key stands with one of its limits: what is left, and when all of it will be there again."""

    kind: LimitKind
    limit: int
    remaining: int
    full_in_s: float


class RateLimiter:
    """The keys with limits at one ingress. Alone it may use all of them. Where `shared_by` several, it begins with
    nothing, and goes by its leases (`ingress/rate_limits/sharing.py`)."""

    def __init__(self, limits: Limits, *, shared_by: int = 1, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._shared_by = shared_by
        self._clock_s = clock_s
        self.on_shortage: Callable[[], None] = lambda: None
        """Called where a request finds a ceiling reached and its limit not used up: a new lease would help."""
        self._keys: dict[str, KeyUsage] = {}
        self._known: Mapping[str, KeyLimits] = {}
        self._reported: Mapping[str, KeyLimits] | None = None
        """The limits of which everything was reported, and answered; None: everything is due."""
        self._asked: Mapping[str, KeyLimits] | None = None
        self._changing: set[str] = set()
        """The keys of which something may have changed since the last report."""
        self._first_share = 0 if shared_by > 1 else 1
        self._least_share = 0
        self._take_limits()

    # ---- requests ----------------------------------------------------------------------------------------------------

    @contextmanager
    def admitted(self, name: str | None, context: RequestContext) -> Iterator[None]:
        """Hold a request's place among those of its key. Raises `RateLimited`."""
        key = self._key(name)
        if key is None:
            yield
            return
        began_s = self._clock_s()
        self._changing.add(str(name))
        self._admit(key, began_s)
        running = Running(context)
        key.running.add(running)
        try:
            yield
        finally:
            ended_s = self._clock_s()
            key.count_tokens(running, ended_s)
            key.running.discard(running)
            if context.sequences:
                key.note_ended(running, ended_s - began_s)

    def standings(self, name: str | None) -> list[Standing]:
        """How a key stands with its limits per minute; nothing for one without."""
        key, now_s = self._key(name), self._clock_s()
        if key is None:
            return []
        self._read_tokens(key, now_s)
        return [
            Standing(
                kind,
                meter.limit,
                max(0, meter.limit - key.used(kind, now_s) - meter.lease.used_elsewhere),
                window.empty_in_s(now_s),
            )
            for kind, meter in key.meters.items()
            if (window := key.windows.get(kind)) is not None
        ]

    def _admit(self, key: KeyUsage, now_s: float) -> None:
        self._read_tokens(key, now_s)
        refusals = []
        for kind, meter in key.meters.items():
            meter.demand += round(key.mean_tokens) if kind is LimitKind.TOKENS else 1
            if key.used(kind, now_s) >= meter.lease.ceiling and not self._may_borrow(key, kind, now_s):
                measured = kind is not LimitKind.CONCURRENT or key.mean_s is not None
                refusals.append(RateLimited(kind, meter.limit, key.retry_s(kind, now_s), measured=measured))
                if key.has_room(kind, now_s):
                    self.on_shortage()
        if refusals:
            raise max(refusals, key=lambda one: one.retry_after_s or 0.0)
        concurrent = key.meters.get(LimitKind.CONCURRENT)
        if concurrent is not None and len(key.running) >= concurrent.lease.ceiling:
            concurrent.borrowed += 1
            self.on_shortage()
        key.windows[LimitKind.REQUESTS].add(1, now_s)

    @staticmethod
    def _may_borrow(key: KeyUsage, kind: LimitKind, now_s: float) -> bool:
        """Whether a request at a time may be admitted beyond the ceiling: one in each lease, where the limit has room
        by what the other ingresses have last reported. Clients of few requests at a time, one after the other, come by
        any ingress; each would be refused by those whose ceiling is 0."""
        may = kind is LimitKind.CONCURRENT and key.meters[kind].borrowed < BORROWED_PER_LEASE
        return may and key.has_room(kind, now_s)

    @staticmethod
    def _read_tokens(key: KeyUsage, now_s: float) -> None:
        if now_s - key.tokens_read_s >= READ_TOKENS_EVERY_S:
            key.tokens_read_s = now_s
            for running in key.running:
                key.count_tokens(running, now_s)

    # ---- limits and leases -------------------------------------------------------------------------------------------

    def _key(self, name: str | None) -> KeyUsage | None:
        self._take_limits()
        return self._keys.get(name) if name is not None else None

    def _take_limits(self) -> None:
        """Follow the keys file. What a key has used counts on under its new limits."""
        known = self._limits.limits()
        if known is self._known:
            return
        self._known = known
        self._keys = {name: self._keys.get(name) or KeyUsage() for name in known}
        for name, key in self._keys.items():
            limits = {kind: getattr(known[name], field_name) for kind, field_name in FIELDS.items()}
            key.meters = {
                kind: self._meter(key.meters.get(kind), limit) for kind, limit in limits.items() if limit is not None
            }

    def _meter(self, before: Meter | None, limit: int) -> Meter:
        if self._shared_by == 1:
            return Meter(limit, Lease(limit))
        if before is None:
            return Meter(limit, Lease(max(self._first_share * limit // self._shared_by, self._least_share)))
        return replace(before, limit=limit, lease=replace(before.lease, ceiling=min(before.lease.ceiling, limit)))

    def assume_equal_shares(self) -> None:
        """Go by an equal share of each limit that nothing is leased of. For keys that come later this holds anyway."""
        self._first_share = 1
        for key in self._keys.values():
            for meter in key.meters.values():
                share = meter.limit // self._shared_by
                meter.lease = replace(meter.lease, ceiling=max(share, meter.lease.ceiling))
        self.do_without_office()

    def do_without_office(self) -> None:
        """Nothing is leased for now: of a limit that is smaller than the number of ingresses each may have one, until
        there are leases again. An equal share would be none."""
        self._least_share = 1
        for name, key in self._keys.items():
            for meter in key.meters.values():
                if meter.limit < self._shared_by and meter.lease.ceiling == 0:
                    meter.lease = replace(meter.lease, ceiling=1)
                    self._changing.add(name)

    def reports(self) -> Reports:
        """What the limits are used for here, to ask for leases with: of all keys, or of those with requests or use that
        has changed. Until `apply` gets the answer, all are due."""
        self._take_limits()
        now_s, is_complete = self._clock_s(), self._reported is not self._known
        self._asked, self._reported = self._known, None
        found: dict[tuple[str, LimitKind], Report] = {}
        for name in list(self._keys if is_complete else self._changing):
            if (key := self._keys.get(name)) is None:
                self._changing.discard(name)
                continue
            self._read_tokens(key, now_s)
            for kind in key.meters:
                report = key.report(kind, now_s, in_any_case=is_complete)
                if report is not None:
                    found[name, kind] = report
            if key.is_quiet(now_s):
                self._changing.discard(name)
            else:
                self._changing.add(name)
        return Reports(found, is_complete)

    def apply(self, leases: Leases | None) -> bool:
        """Go by these leases; None: the office does not know this ingress, so everything is due. True where it must be
        told at once: everything, or that a ceiling is lower than before, so that others can have the rest."""
        if leases is None:
            return True
        self._reported = self._asked
        self._first_share, self._least_share = 1, 0
        lowered = False
        for (name, kind), lease in leases.items():
            key = self._keys.get(name)
            if key is not None and (meter := key.meters.get(kind)) is not None:
                lowered |= lease.ceiling < meter.lease.ceiling
                if lease.ceiling != meter.lease.ceiling:
                    self._changing.add(name)
                meter.lease = replace(lease, ceiling=min(lease.ceiling, meter.limit))
                meter.borrowed = 0
        return lowered
