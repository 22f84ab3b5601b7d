"""The two ends of a lease: `LeaseHolder` in each ingress, `LeaseOffice` in one process of the application.

No request waits for a lease: the holder renews them beside the requests, and goes on with the last ones while the
office does not answer. An office that has been restarted learns from the reports what is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Self

from serve_app.ingress.rate_limits.leases import LEASE_S, SharedLimit
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
"""Limits that nobody reports any more are those of keys that were removed."""


class OfficeAway(Exception):
    """The office did not answer."""


Ask = Callable[[str, Reports], Awaitable[Leases]]
"""Sends an ingress's reports to the office. Raises `OfficeAway`."""


class LeaseOffice:
    """Leases every limit of every key to the ingresses that report. At most `expected` of them, as a rule."""

    def __init__(self, expected: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._expected = expected
        self._clock_s = clock_s
        self._settled_s = clock_s() + SETTLED_AFTER_S
        self._limits: dict[tuple[str, LimitKind], SharedLimit] = {}
        self._reported_s: dict[tuple[str, LimitKind], float] = {}
        self._swept_s = clock_s()

    def exchange(self, ingress: str, reports: Reports) -> Leases:
        """Take an ingress's reports, and lease it what it may use until its next."""
        now_s = self._clock_s()
        self._forget_unreported(now_s)
        leases: Leases = {}
        for name, report in reports.items():
            self._reported_s[name] = now_s
            if name not in self._limits:
                memory_s = 0.0 if name[1] is LimitKind.CONCURRENT else WINDOW_S + 1.0
                self._limits[name] = SharedLimit(memory_s, self._settled_s, self._expected)
            leases[name] = self._limits[name].exchange(ingress, report, now_s)
        return leases

    def _forget_unreported(self, now_s: float) -> None:
        if now_s - self._swept_s < FORGET_AFTER_S:
            return
        self._swept_s = now_s
        for name in [one for one, at_s in self._reported_s.items() if now_s - at_s > FORGET_AFTER_S]:
            del self._limits[name], self._reported_s[name]


class LeaseHolder:
    """Keeps the leases of an ingress's limiter. Enter it before the first request."""

    def __init__(self, limiter: RateLimiter, ask: Ask, ingress: str) -> None:
        self._limiter = limiter
        self._ask = ask
        self._ingress = ingress
        self._is_away = False
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
                    # A ceiling was lowered: others get the rest when this is known.
                    self._limiter.apply(await self._ask(self._ingress, self._limiter.reports()))
        except (OfficeAway, TimeoutError) as error:
            if not self._is_away:
                logger.warning("no rate limit leases, the last ones stay", extra={"reason": str(error)})
            self._is_away = True
            return False
        self._is_away = False
        return True

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EARLY_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._short.wait(), LEASE_S - EARLY_S)
            self._short.clear()
            await self.renew()
