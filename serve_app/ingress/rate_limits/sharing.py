"""The two ends of a lease: `LeaseHolder` in each ingress, `LeaseOffice` in one process of the application.

No request waits for a lease: the holder renews them beside the requests, and goes on with the last ones while the
office does not answer. An office that has been restarted learns from the reports what is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Self

from serve_app.ingress.rate_limits.leases import LEASE_S, Ingresses, Lease, Report, SharedLimit
from serve_app.ingress.rate_limits.limiter import Leases, RateLimiter, Reports
from serve_app.ingress.rate_limits.window import WINDOW_S
from serve_app.protocol.errors import LimitKind

logger = logging.getLogger(__name__)

FIRST_LEASE_TIMEOUT_S = 5.0
"""How long a new ingress waits for its first leases before it goes by equal shares."""

ANSWER_TIMEOUT_S = 2.0
"""An answer that comes later would be of use no more: the next report has been due for a second."""

EARLY_S = 0.2
"""How soon after a renewal the next may come where a key is short of room here that it has elsewhere."""

SETTLED_AFTER_S = 2 * LEASE_S
"""By then every ingress has reported to a new office."""

FORGET_AFTER_S = 2.0 * WINDOW_S
"""What an ingress that has gone has used, has left all windows by then."""

ALONE_AFTER_S = 5.0
"""An office that has been away for so long is not just being replaced."""


class OfficeAway(Exception):
    """The office did not answer."""


Ask = Callable[[str, Reports], Awaitable[Leases | None]]
"""Sends an ingress's reports to the office. Raises `OfficeAway`."""


class LeaseOffice:
    """Leases every limit of every key to the ingresses that report. At most `expected` of them, as a rule.

    An ingress reports what has changed. It is asked for everything where the office does not know it, or has taken it
    for gone.
    """

    def __init__(self, expected: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._expected = expected
        self._clock_s = clock_s
        self._ingresses = Ingresses()
        self._limits: dict[tuple[str, LimitKind], SharedLimit] = {}
        self._uneven: set[tuple[str, LimitKind]] = set()
        self._reported: OrderedDict[tuple[str, LimitKind], int] = OrderedDict()
        """In which exchange each limit that is scarce was reported last, the oldest first."""
        self._exchanges = 0
        self._told: dict[str, int] = {}
        """The last exchange of each ingress."""
        self._swept_s = clock_s()

    def exchange(self, ingress: str, reports: Reports) -> Leases | None:
        """Take an ingress's reports, and lease it what it may use until its next: an answer to each, and where
        others need what it holds or have used much of a limit since its last. None: it must report everything."""
        now_s = self._clock_s()
        if not self._ingresses.hear(ingress, now_s) and not reports.is_complete:
            self._ingresses.forget(ingress)
            return None
        self._sweep(now_s)
        self._exchanges += 1
        leases = {name: self._exchange(name, ingress, report, now_s) for name, report in reports.of.items()}
        if reports.is_complete:
            for name in [one for one in self._limits if one not in reports.of]:
                self._drop(name, ingress)
        for name in (self._uneven | self._reported_since(self._told.get(ingress, 0))) - reports.of.keys():
            limit = self._limits[name]
            if (lease := limit.renew(ingress, now_s)) is not None:
                leases[name] = lease
            self._note(name, limit)
        self._told[ingress] = self._exchanges
        return leases

    def _reported_since(self, exchange: int) -> set[tuple[str, LimitKind]]:
        later = itertools.takewhile(lambda one: one[1] > exchange, reversed(self._reported.items()))
        return {name for name, _ in later}

    def _exchange(self, name: tuple[str, LimitKind], ingress: str, report: Report, now_s: float) -> Lease:
        limit = self._limits.get(name)
        if limit is None:
            memory_s = 0.0 if name[1] is LimitKind.CONCURRENT else WINDOW_S + 1.0
            # Other ingresses have a share of it that they have not reported yet: this process, or the key, is new.
            limit = SharedLimit(memory_s, now_s + SETTLED_AFTER_S, self._expected, self._ingresses)
            self._limits[name] = limit
        lease = limit.exchange(ingress, report, now_s)
        if limit.is_scarce:
            self._reported[name] = self._exchanges
            self._reported.move_to_end(name)
        self._note(name, limit)
        return lease

    def _note(self, name: tuple[str, LimitKind], limit: SharedLimit) -> None:
        (self._uneven.add if limit.is_uneven else self._uneven.discard)(name)

    def _drop(self, name: tuple[str, LimitKind], ingress: str) -> None:
        if self._limits[name].drop(ingress):
            del self._limits[name]
            self._reported.pop(name, None)
            self._uneven.discard(name)

    def _sweep(self, now_s: float) -> None:
        if now_s - self._swept_s < FORGET_AFTER_S:
            return
        self._swept_s = now_s
        for ingress in self._ingresses.forget_gone(FORGET_AFTER_S, now_s):
            self._told.pop(ingress, None)
            for name in list(self._limits):
                self._drop(name, ingress)


class LeaseHolder:
    """Keeps the leases of an ingress's limiter. Enter it before the first request."""

    def __init__(
        self, limiter: RateLimiter, ask: Ask, ingress: str, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limiter = limiter
        self._ask = ask
        self._ingress = ingress
        self._clock_s = clock_s
        self._away_since_s: float | None = None
        self._short = asyncio.Event()
        limiter.on_shortage = self._short.set

    async def __aenter__(self) -> Self:
        if not await self.renew(FIRST_LEASE_TIMEOUT_S):
            self._limiter.assume_equal_shares()
        self._task = asyncio.create_task(self._follow(), name="rate limit leases")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def renew(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
        """Report, and go by what is leased. False where the office does not answer."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._limiter.apply(await self._ask(self._ingress, self._limiter.reports())):
                    self._limiter.apply(await self._ask(self._ingress, self._limiter.reports()))
        except (OfficeAway, TimeoutError) as error:
            now_s = self._clock_s()
            if self._away_since_s is None:
                logger.warning("no rate limit leases, the last ones stay", extra={"reason": str(error)})
                self._away_since_s = now_s
            if now_s - self._away_since_s >= ALONE_AFTER_S:
                self._limiter.do_without_office()
            return False
        self._away_since_s = None
        return True

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EARLY_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._short.wait(), LEASE_S - EARLY_S)
            self._short.clear()
            await self.renew()
