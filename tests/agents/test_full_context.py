"""A conversation that no longer fits: the program has it summarised and goes on from the summary."""

from __future__ import annotations

from typing import Any

import pytest

from tests.agents.conftest import installed
from tests.agents.conversations import ANSWER, DEFAULT, call, conversation, task_text, turn
from tests.agents.programs import CLAUDE, CODEX, OPENCODE, Program, Ran, Workplace
from tests.agents.recording import Recorded, argv, recorded, scripted

pytestmark = pytest.mark.agents

SUMMARY = "TASK-COMPACTED"
TURNS = 8
"""Each adds more than 10,000 tokens, so that all of them together fit into no context of these tests."""


def long_script(shell: str, argument: str, **more: object) -> list[dict[str, Any]]:
    """Commands that print much, until the program asks for a summary; then the answer."""
    prints = [f"seq {number}0000 {number}6000 | head -c 25000" for number in range(1, TURNS + 1)]
    turns = [turn(call(shell, **{argument: command, **more})) for command in prints]
    asked = {
        "last": ["create a detailed summary of|CONTEXT CHECKPOINT COMPACTION|anchored summary"],
        "turns": [turn(say=SUMMARY)],
    }
    return [
        asked,
        {"when": [SUMMARY], "turns": [turn(say=ANSWER)]},
        conversation("LONG", [*turns, turn(say="It never was full.")]),
        DEFAULT,
    ]


SCRIPTS = {
    "claude": long_script("Bash", "command", description="Print"),
    "codex": long_script("exec_command", "cmd", max_output_tokens=20_000),
    "opencode": long_script("bash", "command", description="Print"),
}


async def run_long(agent: Program, place: Workplace, limit: int, told: int) -> tuple[Ran, Recorded]:
    """The task with a context of `limit` tokens, where the program has been told of `told`."""
    installed(agent)
    engine = scripted(SCRIPTS[agent.name], max_model_len=limit)
    async with recorded({"a": engine}, argv=argv(limit)) as running:
        return await place.run(agent, running.url, task_text("LONG", place.work), told), running


async def test_claude_code_compacts_when_it_is_told_that_the_prompt_is_too_long(workplace: Workplace) -> None:
    ran, running = await run_long(CLAUDE, workplace, limit=90_000, told=200_000)
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    statuses = [one.status for one in running.recorder.requests]
    assert statuses.count(400) == 1
    assert statuses[statuses.index(400) + 1 :] == [200, 200], "the summary, and the turn after it"


async def test_codex_compacts_before_the_context_that_it_is_told_of_is_full(workplace: Workplace) -> None:
    ran, running = await run_long(CODEX, workplace, limit=70_000, told=70_000)
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    assert {one.status for one in running.recorder.requests} == {200}


async def test_codex_gives_up_with_its_own_words_where_it_was_told_of_too_long_a_context(workplace: Workplace) -> None:
    """It knows the code and sends nothing again: `client-env` must tell it the true length."""
    ran, running = await run_long(CODEX, workplace, limit=70_000, told=200_000)
    assert ran.status == 1, ran
    assert "ran out of room in the model's context window" in ran.errors
    assert [one.status for one in running.recorder.requests][-1:] == [400]


async def test_opencode_compacts_before_the_context_that_it_is_told_of_is_full(workplace: Workplace) -> None:
    ran, running = await run_long(OPENCODE, workplace, limit=70_000, told=70_000)
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    assert {one.status for one in running.recorder.turns()} == {200}


async def test_opencode_compacts_when_it_is_told_that_the_prompt_is_too_long(workplace: Workplace) -> None:
    """It goes on, but `opencode run` has then seen an error, and ends with 1."""
    ran, running = await run_long(OPENCODE, workplace, limit=70_000, told=200_000)
    statuses = [one.status for one in running.recorder.turns()]
    assert statuses[statuses.index(400) :] == [400, 200, 200], "refused, the summary, and the turn after it"
    assert ANSWER in ran.output, ran.output
    assert ran.status == 1, ran
