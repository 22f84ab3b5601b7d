"""How a rehearsal starts the service, sends its requests and reads what its tools report."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer
from serve_app.rehearse import facts, measure
from serve_app.rehearse.facts import KillResult, LoadResult
from serve_app.rehearse.service import NotStarted, Service, run_tool
from tests.unit.rehearse_examples import free_port, planned

STAND_IN = """
import signal, sys, time
# As `serve` does: SIGINT ends it, even if the shell that started the tests ignores the signal.
signal.signal(signal.SIGINT, lambda *_: sys.exit(1 if sys.argv[1] == "hangs" else 0))
print("Checks before anything starts:\\n\\nStarting (a new local Ray); log\\n", flush=True)
for line in ("engine   loading vLLM (0 s)", "engine   loading vLLM (10 s)", "engine   compiling (20 s)"):
    print("   1.0 s  " + line, flush=True)
if sys.argv[1] == "fails":
    sys.exit("FAILED: out of memory")
if sys.argv[1] == "hangs":
    signal.pause()
print("   3.0 s  answers\\nServing\\n  Ray dashboard  http://127.0.0.1:8265   (asks)\\n", flush=True)
signal.pause()
"""


def stand_in(tmp_path: Path, how: str) -> Service:
    return Service([sys.executable, "-c", STAND_IN, how], tmp_path / "serve.log", lambda _: None)


def test_a_start_is_followed_until_it_answers_and_then_ended(tmp_path: Path) -> None:
    with stand_in(tmp_path, "works") as service:
        service.until_it_answers(30)
        assert service.dashboard == "http://127.0.0.1:8265"
    assert [phase.name for phase in facts.phases(service.lines)] == [
        "checks",
        "Ray and Serve",
        "loading vLLM",
        "compiling",
    ]
    assert service.stop_s is not None
    assert service.left_over == []


def test_a_failed_start_raises_its_last_message(tmp_path: Path) -> None:
    with stand_in(tmp_path, "fails") as service, pytest.raises(NotStarted, match="out of memory"):
        service.until_it_answers(30)


@pytest.mark.slow
def test_a_start_that_takes_too_long_raises_its_last_phase(tmp_path: Path) -> None:
    with stand_in(tmp_path, "hangs") as service, pytest.raises(NotStarted, match=r"not in 3 s; last: .*compiling"):
        service.until_it_answers(3)


@pytest.mark.slow
def test_a_tool_that_hangs_is_killed() -> None:
    printed: list[str] = []
    status, _ = run_tool(
        ["timeit", "-n", "1", "-r", "1", "import signal; print('on', flush=True); signal.pause()"], 2, printed.append
    )
    assert (status, printed) == (-9, ["  on"])


@pytest.mark.slow
async def test_the_load_is_run_by_the_load_test_and_read_from_its_file(tmp_path: Path) -> None:
    async with MockServer(MockConfig(first_s=0.01, gap_s=0.001)) as server:
        port = int(server.url.rpartition(":")[2])
        printed: list[str] = []
        found = await asyncio.to_thread(measure.load, planned(tmp_path, port), "", 1.0, tmp_path, printed.append)
    assert isinstance(found, LoadResult), found
    assert found.requests >= 16
    assert (found.failed, found.published_rate) == (0, None)
    assert found.output_rate > 0
    assert (tmp_path / "load.html").is_file()
    nobody = await asyncio.to_thread(measure.load, planned(tmp_path, free_port()), "", 1.0, tmp_path, printed.append)
    assert isinstance(nobody, str)
    assert "loadtest:" in nobody


async def test_requests_without_an_answer_have_failed_with_the_reason(tmp_path: Path) -> None:
    found = measure.three_requests(planned(tmp_path, free_port()))
    assert [request.ok for request in found] == [False] * 3
    assert all("Connect" in request.said for request in found)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({}, KillResult(4, 4, 21.5, 30.0)),
        ({"gap_across_fault": None, "recovery_s": []}, KillResult(4, 4, None, None)),
        ({"finished": 3, "streams": [{"error": "cut"}, {"error": ""}]}, KillResult(4, 3, 21.5, 30.0, "cut")),
        ({"faults": [{"error": "gone"}]}, KillResult(4, 4, 21.5, 30.0, "the engine core was not killed")),
        ({"problems": ["the fleet has not recovered"]}, KillResult(4, 4, 21.5, 30.0, "the fleet has not recovered")),
    ],
)
def test_a_kill_is_read_from_the_file_that_chaos_writes(
    reported: dict[str, Any], expected: KillResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        "finished": 4, "faults": [{"error": ""}], "streams": [{"error": ""}] * 4, "problems": [],
        "gap_across_fault": {"median_s": 20.0, "worst_s": 21.5, "count": 4}, "recovery_s": [30.0], **reported,
    }  # fmt: skip

    def chaos(arguments: list[str], _limit_s: float, _say: object) -> tuple[int, str]:
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(found))
        return 1, "FAILED"  # answers differ where acceptance is forced

    monkeypatch.setattr("serve_app.rehearse.measure.run_tool", chaos)
    assert measure.kill(planned(tmp_path, 1), "http://127.0.0.1:8265", tmp_path, print) == expected
