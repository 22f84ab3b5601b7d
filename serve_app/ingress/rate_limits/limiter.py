"""Admits the requests of keys with limits, and counts what they use, at one ingress.

A request is checked before anything is done for it, and counts from then on, whatever becomes of it. Its tokens are not
known yet: it is admitted while the key has any left, and its prompt counts when it is submitted, its answer as it is
generated. So a key may go into debt, by the requests that it has running, and waits until that has left the window.
Tokens are read off the running requests when somebody asks, so that a token costs nothing here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from serve_app.ingress.auth import KeyLimits
from serve_app.ingress.rate_limits.leases import LEASE_S, Lease, Report
from serve_app.ingress.rate_limits.window import UsageWindow
from serve_app.protocol.errors import LimitKind, RateLimited
from serve_app.router.request_context import RequestContext

READ_TOKENS_EVERY_S = 0.1
"""How often the running requests of a key are looked through at most: there may be hundreds."""

UNMEASURED_RETRY_S = 5.0
"""When to come back for a place among a key's requests at a time, before one has finished."""

BORROWED_PER_LEASE = 1
"""So many requests at a time of each ingress may be too many, for one lease."""

MAX_RETRY_S = 60.0
"""By then whatever was used has left the window."""

FIELDS = {
    LimitKind.REQUESTS: "requests_per_minute",
    LimitKind.TOKENS: "tokens_per_minute",
    LimitKind.CONCURRENT: "max_concurrent",
}
"""Where a key's limits have each."""

Reports = dict[tuple[str, LimitKind], Report]
Leases = dict[tuple[str, LimitKind], Lease]


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


@dataclass
class _Meter:
    """One limit of a key at this ingress."""

    limit: int
    lease: Lease
    demand: int = 0
    """Units asked for since the last report."""
    last_demand: int = 0
    borrowed: int = 0
    """Requests admitted beyond the ceiling in this lease."""


@dataclass(eq=False)
class _Running:
    context: RequestContext
    tokens: int = 0
    """Those that have been counted."""


def _windows() -> dict[LimitKind, UsageWindow]:
    return {LimitKind.REQUESTS: UsageWindow(), LimitKind.TOKENS: UsageWindow()}


@dataclass
class _Key:
    meters: dict[LimitKind, _Meter] = field(default_factory=dict)
    windows: dict[LimitKind, UsageWindow] = field(default_factory=_windows)
    running: set[_Running] = field(default_factory=set)
    tokens_read_s: float = -math.inf
    mean_s: float | None = None
    """How long its requests run, by the last ten or so."""
    mean_tokens: float = 1000.0
    """The same of their tokens; a guess until some have ended."""

    def used(self, kind: LimitKind, now_s: float) -> int:
        """How much of a limit its requests here use."""
        window = self.windows.get(kind)
        return len(self.running) if window is None else window.used(now_s)


class RateLimiter:
    """The keys with limits at one ingress. Alone it may use all of them. Where `shared_by` several, it begins with
    nothing, and goes by its leases (`ingress/rate_limits/sharing.py`)."""

    def __init__(self, limits: Limits, *, shared_by: int = 1, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._shared_by = shared_by
        self._clock_s = clock_s
        self.on_shortage: Callable[[], None] = lambda: None
        """Called where a request finds a ceiling reached and its limit not used up: a new lease would help."""
        self._keys: dict[str, _Key] = {}
        self._known: Mapping[str, KeyLimits] = {}
        self._first_share = 0 if shared_by > 1 else 1
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
        self._admit(key, began_s)
        running = _Running(context)
        key.running.add(running)
        try:
            yield
        finally:
            ended_s = self._clock_s()
            _count_tokens(key, running, ended_s)
            key.running.discard(running)
            if context.sequences:
                took_s = ended_s - began_s
                key.mean_s = took_s if key.mean_s is None else _moved(key.mean_s, took_s)
                key.mean_tokens = _moved(key.mean_tokens, running.tokens)

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

    def _admit(self, key: _Key, now_s: float) -> None:
        self._read_tokens(key, now_s)
        refusals = []
        for kind, meter in key.meters.items():
            meter.demand += round(key.mean_tokens) if kind is LimitKind.TOKENS else 1
            if key.used(kind, now_s) >= meter.lease.ceiling and not self._may_borrow(key, kind, now_s):
                measured = kind is not LimitKind.CONCURRENT or key.mean_s is not None
                refusals.append(RateLimited(kind, meter.limit, _retry_s(key, kind, now_s), measured=measured))
                if self._has_room(key, kind, now_s):
                    self.on_shortage()
        if refusals:
            raise max(refusals, key=lambda one: one.retry_after_s or 0.0)
        concurrent = key.meters.get(LimitKind.CONCURRENT)
        if concurrent is not None and len(key.running) >= concurrent.lease.ceiling:
            concurrent.borrowed += 1
            self.on_shortage()
        key.windows[LimitKind.REQUESTS].add(1, now_s)

    def _may_borrow(self, key: _Key, kind: LimitKind, now_s: float) -> bool:
        """Whether a request at a time may be admitted beyond the ceiling: one in each lease, where the limit has room
        by what the other ingresses have last reported. Clients of few requests at a time, one after the other, come by
        any ingress; each would be refused by those whose ceiling is 0."""
        may = kind is LimitKind.CONCURRENT and key.meters[kind].borrowed < BORROWED_PER_LEASE
        return may and self._has_room(key, kind, now_s)

    @staticmethod
    def _has_room(key: _Key, kind: LimitKind, now_s: float) -> bool:
        """Whether the limit is not used up, by what the other ingresses have last reported."""
        meter = key.meters[kind]
        return key.used(kind, now_s) + meter.lease.used_elsewhere < meter.limit

    def _read_tokens(self, key: _Key, now_s: float) -> None:
        if now_s - key.tokens_read_s >= READ_TOKENS_EVERY_S:
            key.tokens_read_s = now_s
            for running in key.running:
                _count_tokens(key, running, now_s)

    # ---- limits and leases -------------------------------------------------------------------------------------------

    def _key(self, name: str | None) -> _Key | None:
        self._take_limits()
        return self._keys.get(name) if name is not None else None

    def _take_limits(self) -> None:
        """Follow the keys file. What a key has used counts on under its new limits."""
        known = self._limits.limits()
        if known is self._known:
            return
        self._known = known
        self._keys = {name: self._keys.get(name) or _Key() for name in known}
        for name, key in self._keys.items():
            limits = {kind: getattr(known[name], field_name) for kind, field_name in FIELDS.items()}
            key.meters = {
                kind: self._meter(key.meters.get(kind), limit) for kind, limit in limits.items() if limit is not None
            }

    def _meter(self, before: _Meter | None, limit: int) -> _Meter:
        if self._shared_by == 1:
            return _Meter(limit, Lease(limit))
        if before is None:
            return _Meter(limit, Lease(self._first_share * limit // self._shared_by))
        return replace(before, limit=limit, lease=replace(before.lease, ceiling=min(before.lease.ceiling, limit)))

    def assume_equal_shares(self) -> None:
        """Go by an equal share of each limit that nothing is leased of. For keys that come later this holds anyway."""
        self._first_share = 1
        for key in self._keys.values():
            for meter in key.meters.values():
                share = meter.limit // self._shared_by
                meter.lease = replace(meter.lease, ceiling=max(share, meter.lease.ceiling))

    def reports(self) -> Reports:
        """What each limit is used for here, to ask for leases with."""
        self._take_limits()
        now_s = self._clock_s()
        found: Reports = {}
        for name, key in self._keys.items():
            self._read_tokens(key, now_s)
            for kind, meter in key.meters.items():
                # It ebbs: a client that pauses for a second is not done.
                demand, meter.demand = max(meter.demand, meter.last_demand // 2), 0
                meter.last_demand = demand
                window = key.windows.get(kind)
                frees_in_s = window.frees_in_s(1, now_s) if window is not None else None
                used = key.used(kind, now_s)
                found[name, kind] = Report(meter.limit, meter.lease.ceiling, used, demand, frees_in_s)
        return found

    def apply(self, leases: Leases) -> bool:
        """Go by these leases. True where one has a lower ceiling than before: report again at once, so that others can
        have the rest."""
        self._first_share = 1
        lowered = False
        for (name, kind), lease in leases.items():
            key = self._keys.get(name)
            if key is not None and (meter := key.meters.get(kind)) is not None:
                lowered |= lease.ceiling < meter.lease.ceiling
                meter.lease = replace(lease, ceiling=min(lease.ceiling, meter.limit))
                meter.borrowed = 0
        return lowered


def _count_tokens(key: _Key, running: _Running, now_s: float) -> None:
    sequences = running.context.sequences
    tokens = sum(one.prompt_tokens + one.output_tokens - one.resumed_tokens for one in sequences)
    if tokens > running.tokens:
        key.windows[LimitKind.TOKENS].add(tokens - running.tokens, now_s)
        running.tokens = tokens


def _retry_s(key: _Key, kind: LimitKind, now_s: float) -> float:
    """When there is room for one more request."""
    meter = key.meters[kind]
    excess = key.used(kind, now_s) + meter.lease.used_elsewhere + 1 - meter.limit
    if excess <= 0:
        return 2 * LEASE_S  # what other ingresses hold and do not use comes here by then
    window = key.windows.get(kind)
    if window is None:
        return UNMEASURED_RETRY_S if key.mean_s is None else min(MAX_RETRY_S, key.mean_s / meter.limit)
    here_s, elsewhere_s = window.frees_in_s(excess, now_s), meter.lease.frees_elsewhere_in_s
    if here_s is not None:
        return here_s
    return MAX_RETRY_S if elsewhere_s is None else elsewhere_s + 2 * LEASE_S


def _moved(mean: float, latest: float) -> float:
    return mean + (latest - mean) / 10
