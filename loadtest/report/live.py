"""The run while it goes on: a panel on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter_ns

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.load.run import FinishedRequest

RECENT_S = 10.0
"""Rates and percentiles are of this long a window."""
LINE_EVERY_S = 10.0
BARS = "▁▂▃▄▅▆▇█"


class ProgressBoard:
    """An audience that keeps what the live view shows."""

    def __init__(self, total: int, seconds: float) -> None:
        self.total = total
        self._seconds = seconds
        self._begin_ns = 0
        self.started = 0
        self.done = 0
        self.failed = 0
        self.outcomes: Counter[str] = Counter()
        self._recent: deque[FinishedRequest] = deque()
        self.history: deque[float] = deque(maxlen=60)

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # an audience may end a run
        """The clock started."""
        self._begin_ns = begin_ns

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Take news in."""
        self.started += started
        for one in ended:
            self.done += 1
            if not one.ok:
                self.failed += 1
                self.outcomes[one.outcome] += 1
            self._recent.append(one)

    @property
    def elapsed_s(self) -> float:
        """Since the clock started; 0 before."""
        return max(0.0, (perf_counter_ns() - self._begin_ns) / 1e9) if self._begin_ns else 0.0

    @property
    def share(self) -> float:
        """How much is done, by requests or by time, whichever is further."""
        by_time = self.elapsed_s / self._seconds if self._seconds < float("inf") else 0.0
        return min(1.0, max(by_time, self.done / self.total if self.total else 0.0))

    def left_s(self) -> float | None:
        """Time left at the pace so far."""
        share = self.share
        return self.elapsed_s * (1 - share) / share if share > 0.02 else None

    def recent(self) -> list[FinishedRequest]:
        """Requests that ended within the window."""
        oldest = perf_counter_ns() - int(RECENT_S * 1e9)
        while self._recent and self._recent[0].end_ns < oldest:
            self._recent.popleft()
        return list(self._recent)

    def rates(self) -> tuple[float, float]:
        """Requests and output tokens per second of late, counted when requests end."""
        window = min(RECENT_S, self.elapsed_s) or 1.0
        recent = [one for one in self.recent() if one.ok]
        return len(recent) / window, sum(one.tokens for one in recent) / window

    def line(self) -> str:
        """One line for logs."""
        rate, tokens = self.rates()
        good = [one for one in self.recent() if one.ok]
        times = f", TTFT P50 {_p(good, 'ttft_ms', 50)} P99 {_p(good, 'ttft_ms', 99)} ms" if good else ""
        left = self.left_s()
        return (
            f"{self.elapsed_s:6.0f} s  {self.done:,}{self._of('/')} done, {self.started - self.done} in flight, "
            f"{self.failed} failed, {rate:.1f} req/s, {tokens:,.0f} tok/s{times}"
            + (f", about {_clock(left)} left" if left is not None else "")
        )

    def _of(self, before: str) -> str:
        """The number planned; a run that time ends has more prompts at hand than it will need."""
        return f"{before}{self.total:,}" if self._seconds == float("inf") else ""

    def panel(self) -> Group:
        """The terminal's panel."""
        rate, tokens = self.rates()
        good = [one for one in self.recent() if one.ok]
        left = self.left_s()
        self.history.append(tokens)
        facts = Table.grid(padding=(0, 3))
        facts.add_row("requests", f"{self.done:,}{self._of(' of ')}", "in flight", f"{self.started - self.done:,}")
        facts.add_row("output", f"{tokens:,.0f} tok/s", "rate", f"{rate:.2f} req/s")
        for name, field in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms")):
            facts.add_row(f"{name} P50", f"{_p(good, field, 50)} ms", f"{name} P99", f"{_p(good, field, 99)} ms")
        said = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common(4))
        failed = Text(
            f"failed {self.failed}" + (f": {said}" if said else ""), style="bold red" if self.failed else "dim"
        )
        clock = f"{_clock(self.elapsed_s)} elapsed" + (f", about {_clock(left)} left" if left is not None else "")
        bar = ProgressBar(total=1.0, completed=self.share, width=48)
        return Group(bar, Text(clock, style="dim"), facts, Text(_spark(self.history), style="cyan"), failed)


def _p(ended: list[FinishedRequest], field: str, percent: float) -> str:
    values = [getattr(one, field) for one in ended]
    return f"{np.percentile(values, percent):,.1f}" if values else "-"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _spark(values: deque[float]) -> str:
    top = max(values, default=0.0) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(value / top * (len(BARS) - 1)))] for value in values)


@asynccontextmanager
async def shown(board: ProgressBoard, *, live: bool) -> AsyncIterator[None]:
    """Show the board while the body runs, on stderr: stdout is for results."""
    if live:
        view = Live(board.panel(), console=Console(stderr=True), transient=True, auto_refresh=False)
        with view:
            async with _every(0.5, lambda: view.update(board.panel(), refresh=True)):
                yield
        return
    async with _every(LINE_EVERY_S, lambda: print(board.line(), file=sys.stderr, flush=True)):
        yield


@asynccontextmanager
async def _every(seconds: float, act: Callable[[], None]) -> AsyncIterator[None]:
    async def forever() -> None:
        while True:
            await asyncio.sleep(seconds)
            act()

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
