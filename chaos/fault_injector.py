"""One fault on one replica: aimed before the streams start, made at its token, and undone whatever happens.

What is stopped is this run's debt: a stopped replica is ended when its wave is over (Serve may long have done so), one
that is slowed runs on, and leaving the `with` settles what is still open.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Self

from chaos.fault_target import FaultTarget, TargetProcesses, TargetUnreachable
from chaos.options import Fault

SIGNALS = {
    Fault.KILL: signal.SIGKILL,
    Fault.KILL_ENGINE: signal.SIGKILL,
    Fault.HANG: signal.SIGSTOP,
    Fault.CUT: signal.SIGSTOP,
}


class FaultInjector:
    """Use as an async context manager: on leaving it, nothing stands still that it stopped."""

    def __init__(self, target: FaultTarget, slow_s: float) -> None:
        self._target = target
        self._slow_s = slow_s
        self._stopped: list[tuple[Fault, TargetProcesses]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.settle())

    async def inject(self, fault: Fault, processes: TargetProcesses) -> None:
        """Make the fault. `SLOW` returns when it is over, the others at once. Raises `TargetUnreachable`."""
        if fault is Fault.SLOW:
            self._stopped.append((fault, processes))
            await self._target.slow(processes, self._slow_s)
            return
        number = SIGNALS[fault]
        if number is signal.SIGSTOP:
            self._stopped.append((fault, processes))
        if not await self._target.send(processes, number):
            raise TargetUnreachable(f"replica {processes.replica.replica_id} was gone before the fault")

    async def settle(self) -> None:
        """End what was stopped, let go on what was slowed."""
        while self._stopped:
            fault, processes = self._stopped.pop()
            # Gone already, or gone with its node: either way it does not stand still.
            with contextlib.suppress(TargetUnreachable):
                await self._target.send(processes, signal.SIGCONT if fault is Fault.SLOW else signal.SIGKILL)
