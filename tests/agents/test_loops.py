"""A whole loop with each agent: read a file, edit it, run a command, answer. All of it is exact."""

from __future__ import annotations

import pytest

from tests.agents.conversations import ANSWER, loops_script, task_text
from tests.agents.programs import Program, Ran, Workplace
from tests.agents.recording import recorded, scripted

pytestmark = pytest.mark.agents

SESSION_SOURCES = {"claude": "x-claude-code-session-id", "codex": "session-id", "opencode": "x-session-id"}
"""What names the session of each program, all its requests alike; the others name none."""


def expect_done(place: Workplace, ran: Ran) -> None:
    """The file is as scripted, the command has run, and the program says the answer."""
    assert ran.status == 0, ran
    assert (place.work / "hello.py").read_text() == 'print("two")\n', ran
    assert ANSWER in ran.output, ran


async def test_the_loop_is_as_scripted(program: Program, workplace: Workplace) -> None:
    async with recorded({"a": scripted(loops_script())}) as running:
        ran = await workplace.run(program, running.url, task_text(f"LOOP-{program.name}", workplace.work))
        found = {line.context.session for line in running.lines() if line.context.sequences}
    expect_done(workplace, ran)
    assert {request.status for request in running.recorder.requests} == {200}
    assert {one and one.source for one in found} == {SESSION_SOURCES.get(program.name)}
    assert len(found) == 1


async def test_an_engine_that_dies_in_the_middle_of_the_edit_changes_nothing(
    program: Program, workplace: Workplace
) -> None:
    engines = {"a": scripted(loops_script()), "b": scripted(loops_script())}
    async with recorded(engines) as running:
        ran = await workplace.run(program, running.url, task_text(f"CRASH-{program.name}", workplace.work))
        lost = [line.context for line in running.lines() if any(one.migrations for one in line.context.sequences)]
    expect_done(workplace, ran)
    assert len(lost) == 1
