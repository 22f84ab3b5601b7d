"""What only Claude Code does."""

from __future__ import annotations

import dataclasses

import pytest

from tests.agents.conftest import installed
from tests.agents.conversations import ANSWER, loops_script, task_text
from tests.agents.programs import CLAUDE, Workplace
from tests.agents.recording import recorded, scripted

pytestmark = pytest.mark.agents


async def test_a_model_name_of_anthropic_with_a_thinking_budget_does_the_whole_loop(workplace: Workplace) -> None:
    installed(CLAUDE)
    agent = dataclasses.replace(CLAUDE, command=lambda task: [*CLAUDE.command(task), "--model", "claude-sonnet-4-5"])
    async with recorded({"a": scripted(loops_script())}) as running:
        ran = await workplace.run(agent, running.url, task_text("LOOP-claude", workplace.work))
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    assert (workplace.work / "hello.py").read_text() == 'print("two")\n'
    asked = [one.json() for one in running.recorder.requests if one.body]
    assert {body["model"] for body in asked} == {"claude-sonnet-4-5"}
    assert all(body["thinking"]["budget_tokens"] > 0 for body in asked)
