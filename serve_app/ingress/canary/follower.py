"""Follows the trial of a canary at one ingress: finds the canary's application, tells the judge what this ingress has
seen, and does what the judge says.

Nothing of a request waits for it. While the judge does not answer, the last directive holds. An ingress that has just
started asks before it serves: otherwise the canary's sessions would go to the rest of the fleet until it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from serve_app.config.fleet import CANARY
from serve_app.ingress.canary.samples import Samples
from serve_app.ingress.canary.trial import Directive, TrialReport
from serve_app.observability.fleet import CanaryView
from serve_app.protocol.errors import Outcome
from serve_app.router.attempts import Transport
from serve_app.router.canary_arm import CanaryArm
from serve_app.router.composite_transport import CompositeTransport
from serve_app.router.request_context import RequestTrace

logger = logging.getLogger(__name__)

EXCHANGE_S = 1.0
LOOK_S = 5.0
"""How often an ingress looks whether there is a canary: a call to Serve's controller that costs it next to nothing."""

TIMEOUT_S = 2.0


class JudgeAway(Exception):
    """The judge did not answer."""


class CanaryApplication(Protocol):
    """The canary's application (`deployment.py`)."""

    async def exists(self) -> bool:
        """Whether there is one. Raises `JudgeAway` where that cannot be told."""

    async def connect(self) -> Transport:
        """The way to its engines. Raises `JudgeAway`."""

    async def exchange(self, report: TrialReport) -> Directive:
        """Report to its judge. Raises `JudgeAway`."""


class CanaryFollower:
    """Use as an async context manager. `is_up` says whether a canary takes work. `on_directive` is called with each
    answer of the judge."""

    def __init__(
        self,
        ingress_id: str,
        application: CanaryApplication,
        arm: CanaryArm,
        fleet: CompositeTransport,
        is_up: Callable[[], bool],
        on_directive: Callable[[Directive], None] = lambda _directive: None,
    ) -> None:
        self._ingress_id = ingress_id
        self._application = application
        self._arm = arm
        self._fleet = fleet
        self._is_up = is_up
        self._on_directive = on_directive
        self._samples = Samples()
        self._is_connected = False
        self._away = False
        self.directive: Directive | None = None
        """What the judge said last; None without a canary."""

    async def __aenter__(self) -> Self:
        await self.look()
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="canary")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def note(self, sequences: Sequence[RequestTrace], outcome: Outcome) -> None:
        """A request has ended. It counts while a canary is tried."""
        if self._arm.share > 0:
            self._samples.add(sequences, outcome)

    def view(self) -> CanaryView | None:
        """The trial, for the status page."""
        said = self.directive
        if said is None:
            return None
        return CanaryView(
            said.trial,
            said.state,
            said.reason,
            said.share,
            said.tried_s,
            said.samples.canary.attempts,
            said.samples.stable.attempts,
        )

    async def look(self) -> None:
        """Look for a canary, or report to its judge."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if not self._is_connected:
                    await self._find()
                if self._is_connected:
                    await self._exchange()
        except (JudgeAway, TimeoutError) as error:
            if not self._away:
                logger.warning("the canary's judge does not answer: its last word holds", extra={"reason": str(error)})
            self._away = True
            await self._forget_if_gone()
        else:
            self._away = False

    async def _find(self) -> None:
        if await self._application.exists():
            self._fleet.add(CANARY, await self._application.connect(), gives_partial_outputs=False)
            self._is_connected = True

    async def _exchange(self) -> None:
        said = self.directive or Directive()
        report = TrialReport(
            self._ingress_id, self._arm.trial, self._samples, said.state, said.reason, said.tried_s, self._is_up()
        )
        directive = await self._application.exchange(report)
        if directive.trial != self._arm.trial:
            self._samples = Samples()
        if self._arm.follow(directive.share, directive.trial):
            facts = {"trial": directive.trial, "share": directive.share, "state": directive.state}
            logger.info("the canary's share changes", extra={**facts, "reason": directive.reason})
        self.directive = directive
        self._on_directive(directive)

    async def _forget_if_gone(self) -> None:
        """Without its application there is no canary any more."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if not self._is_connected or await self._application.exists():
                    return
        except (JudgeAway, TimeoutError):
            return
        logger.info("the canary's application is gone", extra={"trial": self._arm.trial})
        self._fleet.remove(CANARY)
        self._arm.follow(0.0, "")
        self._is_connected, self.directive, self._samples = False, None, Samples()
        self._on_directive(Directive())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EXCHANGE_S if self._is_connected else LOOK_S)
            await self.look()
