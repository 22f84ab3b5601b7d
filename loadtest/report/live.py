"""Progress during a run: a panel on a terminal, and a line every ten seconds elsewhere."""

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

from loadtest.load.runner import FinishedRequest

RECENT_S = 10.0
"""Window of the rates and percentiles."""
LINE_INTERVAL_S = 10.0
PANEL_INTERVAL_S = 0.5
MIN_DONE_RATIO = 0.02
"""Before this share is done, the remaining time cannot be estimated."""
BARS = "▁▂▃▄▅▆▇█"


class ProgressBoard:
    """An observer that keeps the state of a run for the live view."""

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

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # the protocol lets an observer end a run
        """Start the clock."""
        self._begin_ns = begin_ns

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Count requests that started and ended."""
        self.started += started
        for one in ended:
            self.done += 1
            if not one.ok:
                self.failed += 1
                self.outcomes[one.outcome] += 1
            self._recent.append(one)

    @property
    def elapsed_s(self) -> float:
        """Time since the start of the run; 0 before it."""
        return max(0.0, (perf_counter_ns() - self._begin_ns) / 1e9) if self._begin_ns else 0.0

    @property
    def done_ratio(self) -> float:
        """Completed share of the run, by requests or by time, whichever is larger."""
        by_time = self.elapsed_s / self._seconds if self._seconds < float("inf") else 0.0
        return min(1.0, max(by_time, self.done / self.total if self.total else 0.0))

    def remaining_s(self) -> float | None:
        """Estimated remaining time; None at the beginning."""
        done = self.done_ratio
        return self.elapsed_s * (1 - done) / done if done > MIN_DONE_RATIO else None

    def recent(self) -> list[FinishedRequest]:
        """Requests that ended within the last `RECENT_S` seconds."""
        oldest = perf_counter_ns() - int(RECENT_S * 1e9)
        while self._recent and self._recent[0].end_ns < oldest:
            self._recent.popleft()
        return list(self._recent)

    def rates(self) -> tuple[float, float]:
        """Requests and output tokens per second over the last `RECENT_S` seconds, counted when requests end."""
        window = min(RECENT_S, self.elapsed_s) or 1.0
        recent = [one for one in self.recent() if one.ok]
        return len(recent) / window, sum(one.tokens for one in recent) / window

    def line(self) -> str:
        """One progress line, for logs."""
        rate, tokens = self.rates()
        good = [one for one in self.recent() if one.ok]
        times = f", TTFT P50 {_p(good, 'ttft_ms', 50)} P99 {_p(good, 'ttft_ms', 99)} ms" if good else ""
        remaining_s = self.remaining_s()
        return (
            f"{self.elapsed_s:6.0f} s  {self.done:,}{self._of('/')} done, {self.started - self.done} in flight, "
            f"{self.failed} failed, {rate:.1f} req/s, {tokens:,.0f} tok/s{times}"
            + (f", about {_clock(remaining_s)} left" if remaining_s is not None else "")
        )

    def _of(self, before: str) -> str:
        """The planned number of requests; unknown for a run that ends after a time."""
        return f"{before}{self.total:,}" if self._seconds == float("inf") else ""

    def panel(self) -> Group:
        """The panel on a terminal."""
        rate, tokens = self.rates()
        good = [one for one in self.recent() if one.ok]
        remaining_s = self.remaining_s()
        self.history.append(tokens)
        facts = Table.grid(padding=(0, 3))
        facts.add_row("requests", f"{self.done:,}{self._of(' of ')}", "in flight", f"{self.started - self.done:,}")
        facts.add_row("output", f"{tokens:,.0f} tok/s", "rate", f"{rate:.2f} req/s")
        for name, field in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms")):
            facts.add_row(f"{name} P50", f"{_p(good, field, 50)} ms", f"{name} P99", f"{_p(good, field, 99)} ms")
        outcomes = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common(4))
        failed = Text(
            f"failed {self.failed}" + (f": {outcomes}" if outcomes else ""), style="bold red" if self.failed else "dim"
        )
        clock = f"{_clock(self.elapsed_s)} elapsed" + (
            f", about {_clock(remaining_s)} left" if remaining_s is not None else ""
        )
        bar = ProgressBar(total=1.0, completed=self.done_ratio, width=48)
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
async def show_progress(board: ProgressBoard, *, live: bool) -> AsyncIterator[None]:
    """Show the board on stderr while the body runs; stdout is for results."""
    if live:
        view = Live(board.panel(), console=Console(stderr=True), transient=True, auto_refresh=False)
        with view:
            async with _repeat(PANEL_INTERVAL_S, lambda: view.update(board.panel(), refresh=True)):
                yield
        return
    async with _repeat(LINE_INTERVAL_S, lambda: print(board.line(), file=sys.stderr, flush=True)):
        yield


@asynccontextmanager
async def _repeat(seconds: float, act: Callable[[], None]) -> AsyncIterator[None]:
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
