"""One run from ready prompts to records: over one worker here, or over several processes (`workers.py`)."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

from loadtest.drive import Job, Watcher, Worker, in_order, sessions_of, wall_anchor
from loadtest.pool import Endpoint
from loadtest.record import Run
from loadtest.selfcheck import SelfCheck


@dataclass(frozen=True)
class Finished:
    """A run and what its workers cost, one entry per worker."""

    run: Run
    checks: tuple[SelfCheck, ...]


async def run_here(job: Job, endpoint: Endpoint, watcher: Watcher) -> Finished:
    """Run a job on this process's loop. The first interrupt ends it early with what was measured; a second one kills."""
    sessions = sessions_of(job.prompts)
    worker = Worker(job, endpoint, watcher)
    interrupted = False
    loop = asyncio.get_running_loop()

    def stop() -> None:
        nonlocal interrupted
        interrupted = True
        loop.remove_signal_handler(signal.SIGINT)
        worker.stop()

    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        records, check, begin_ns, end_ns = await worker.run(sessions, in_order(len(sessions)))
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
    run = Run(records, begin_ns, end_ns, wall_anchor(begin_ns), interrupted)
    return Finished(run, (check,))


class Silent:
    """A watcher that does nothing."""

    def started(self) -> None:
        """A request began."""

    def finished(self, record: object) -> None:
        """A request's record is complete."""
