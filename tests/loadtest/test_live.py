"""Progress during a run: counts, rates, remaining time; lines in logs and a panel on a terminal."""

from __future__ import annotations

import asyncio
import io
import math
from time import perf_counter_ns

import pytest
from rich.console import Console

from loadtest.load.runner import FinishedRequest
from loadtest.report import live
from loadtest.report.live import ProgressBoard, show_progress


def ended(*, ok: bool = True, ago_s: float = 0.0) -> FinishedRequest:
    end_ns = perf_counter_ns() - int(ago_s * 1e9)
    if not ok:
        return FinishedRequest(False, "cut", 0.0, 0.0, 0, end_ns)
    return FinishedRequest(True, "ok", 120.0, 8.0, 50, end_ns)


def board(total: int = 10, seconds: float = math.inf) -> ProgressBoard:
    made = ProgressBoard(total, seconds)
    made.on_start(perf_counter_ns() - 5_000_000_000, lambda: None)
    return made


def test_a_line_counts_requests_and_shows_recent_latency() -> None:
    made = board()
    made.on_progress(6, [ended(ago_s=60), ended(), ended(), ended(ok=False)])
    line = made.line()
    assert "4/10 done, 2 in flight, 1 failed" in line
    assert "TTFT P50 120.0 P99 120.0 ms" in line
    assert line.endswith("about 0:07 left"), "5 s for 4 of 10"
    rate, tokens = made.rates()
    assert rate == pytest.approx(2 / 5, rel=0.05), "the one of a minute ago is not recent"
    assert tokens == pytest.approx(100 / 5, rel=0.05)


def test_a_run_that_ends_by_the_clock_has_no_total() -> None:
    made = board(4096, seconds=20.0)
    made.on_progress(1, [ended()])
    assert " 1 done" in made.line()
    assert made.done_ratio == pytest.approx(0.25, rel=0.05)


def test_before_the_start_nothing_is_estimated() -> None:
    made = ProgressBoard(10, math.inf)
    assert (made.elapsed_s, made.done_ratio, made.remaining_s()) == (0.0, 0.0, None)


def test_the_panel_shows_the_same_figures_and_names_failures() -> None:
    made = board()
    made.on_progress(5, [ended(), ended(ok=False), ended(ok=False)])
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(made.panel())
    text = captured.get()
    assert "3 of 10" in text
    assert "failed 2: cut 2" in text
    assert "120.0 ms" in text
    assert "0:05 elapsed, about 0:11 left" in text


@pytest.mark.parametrize("panel", [False, True])
async def test_progress_goes_to_stderr_repeatedly(
    panel: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LINE_INTERVAL_S", 0.001)
    monkeypatch.setattr(live, "PANEL_INTERVAL_S", 0.001)
    drawn = asyncio.Event()

    class Watched(ProgressBoard):
        times = 0

        def rates(self) -> tuple[float, float]:
            self.times += 1
            if self.times == 3:
                drawn.set()
            return super().rates()

    async with show_progress(Watched(10, math.inf), live=panel):
        await drawn.wait()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("0/10 done") >= 2 or panel
