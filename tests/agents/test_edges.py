"""What happens to an agent when things do not go their way: it waits, compacts or goes on, and never gives up."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from serve_app.engine.replica import EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from tests.agents.conftest import installed
from tests.agents.conversations import ANSWER, DEFAULT, call, conversation, loops_script, task_text, turn
from tests.agents.programs import CLAUDE, CODEX, OPENCODE, Program, Workplace
from tests.agents.recording import Recorded, recorded, scripted

pytestmark = pytest.mark.agents

TWO_AT_ONCE: dict[str, list[dict[str, Any]]] = {
    "claude": [call("Bash", command="echo a > a.txt"), call("Bash", command="echo b > b.txt")],
    "codex": [call("exec_command", cmd="echo a > a.txt"), call("exec_command", cmd="echo b > b.txt")],
    "opencode": [
        call("bash", command="echo a > a.txt", description="a"),
        call("bash", command="echo b > b.txt", description="b"),
    ],
}
WITH_TOOLS = pytest.mark.parametrize("agent", [CLAUDE, CODEX, OPENCODE], ids=lambda agent: agent.name)


@WITH_TOOLS
async def test_two_calls_at_once_are_both_run(agent: Program, workplace: Workplace) -> None:
    installed(agent)
    turns = [turn(*TWO_AT_ONCE[agent.name], say="Both."), turn(say=ANSWER)]
    async with recorded({"a": scripted([conversation("TWO", turns), DEFAULT])}) as running:
        ran = await workplace.run(agent, running.url, task_text("TWO", workplace.work))
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    assert [(workplace.work / name).read_text() for name in ("a.txt", "b.txt")] == ["a\n", "b\n"]


@WITH_TOOLS
async def test_an_agent_that_is_refused_for_want_of_room_waits_and_goes_on(
    agent: Program, workplace: Workplace
) -> None:
    installed(agent)
    endless = {"last": ["BUSY"], "turns": [{"say": "x", "ends": False}]}
    engine = scripted([endless, *loops_script()], max_num_seqs=1, gap_s=0.01)
    async with recorded({"a": engine}, max_queued_requests=0) as running:
        busy = asyncio.create_task(keep_busy(running))
        while running.service.client.dispatcher.in_flight == 0:  # noqa: ASYNC110  # it sets no event
            await asyncio.sleep(0)
        run = asyncio.create_task(workplace.run(agent, running.url, task_text(f"LOOP-{agent.name}", workplace.work)))
        await running.recorder.until_status(429)
        busy.cancel()
        ran = await run
        await asyncio.gather(busy, return_exceptions=True)
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    assert (workplace.work / "hello.py").read_text() == 'print("two")\n'
    expect_waited(running, 429)


def expect_waited(running: Recorded, status: int) -> None:
    """The refused turn came again, no earlier than the refusal had asked for."""
    turns = running.recorder.turns()
    refused = [(one, again) for one, again in itertools.pairwise(turns) if one.status == status]
    assert refused
    for one, again in refused:
        waited_s, asked_s = again.came_s - one.answered_s, int(one.answer_headers["retry-after"])
        assert waited_s >= asked_s, [(turn.path, turn.status, turn.came_s) for turn in turns]


@WITH_TOOLS
async def test_an_agent_that_finds_no_engine_up_waits_and_goes_on(agent: Program, workplace: Workplace) -> None:
    installed(agent)
    replica = EngineReplica("a", scripted(loops_script()), WatchdogLimits(20))
    await replica.start()
    status = 529 if agent is CLAUDE else 503
    try:
        async with recorded({}, deadline_s=0.2) as running:
            task = task_text(f"LOOP-{agent.name}", workplace.work)
            run = asyncio.create_task(workplace.run(agent, running.url, task))
            await running.recorder.until_status(status)
            running.service.transport.live["a"] = replica
            ran = await run
    finally:
        await replica.stop()
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    expect_waited(running, status)


async def keep_busy(running: Recorded) -> None:
    """Hold the engine's only slot until cancelled."""
    body = {"model": "step3p7-flash", "max_tokens": 100_000, "messages": [{"role": "user", "content": "BUSY"}]}
    async with httpx.AsyncClient(trust_env=False, timeout=None) as client:  # noqa: S113  # it is cancelled
        await client.post(f"{running.service.url}/v1/chat/completions", json=body)
