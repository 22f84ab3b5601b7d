"""One fault on one replica: aimed before the streams start, made at its token, and undone whatever happens.

What is stopped is this run's debt: a stopped replica is ended when its wave is over (Serve may long have done so), one
that is slowed runs on, and leaving the `with` settles what is still open.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Self

from chaos.fault_target import Aim, FaultTarget, TargetUnreachable
from chaos.options import Fault

SIGNALS = {
    Fault.KILL: signal.SIGKILL,
    Fault.KILL_ENGINE: signal.SIGKILL,
    Fault.HANG: signal.SIGSTOP,
    Fault.CUT: signal.SIGSTOP,
}


class FaultInjector:
    """Use as an async context manager: on leaving it, nothing stands still that it stopped."""

    def __init__(self, reach: FaultTarget, slow_s: float) -> None:
        self._reach = reach
        self._slow_s = slow_s
        self._stopped: list[tuple[Fault, Aim]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.settle())

    async def strike(self, fault: Fault, aim: Aim) -> None:
        """Make the fault. `SLOW` returns when it is over, the others at once. Raises `TargetUnreachable`."""
        if fault is Fault.SLOW:
            self._stopped.append((fault, aim))
            await self._reach.slow(aim, self._slow_s)
            return
        number = SIGNALS[fault]
        if number is signal.SIGSTOP:
            self._stopped.append((fault, aim))
        if not await self._reach.send(aim, number):
            raise TargetUnreachable(f"replica {aim.replica.replica_id} was gone before the fault")

    async def settle(self) -> None:
        """End what was stopped, let go on what was slowed."""
        while self._stopped:
            fault, aim = self._stopped.pop()
            # Gone already, or gone with its node: either way it does not stand still.
            with contextlib.suppress(TargetUnreachable):
                await self._reach.send(aim, signal.SIGCONT if fault is Fault.SLOW else signal.SIGKILL)
