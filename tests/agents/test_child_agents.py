"""Agents that start child agents: each request of all of them is of one session, and the parent gets the answer."""

from __future__ import annotations

import pytest

from tests.agents.conftest import installed
from tests.agents.conversations import ANSWER, DEFAULT, NOT_THE_TASK, Turn, call, conversation, task_text, turn
from tests.agents.programs import CLAUDE, CODEX, OPENCODE, Program, Workplace
from tests.agents.recording import Request, recorded, scripted

pytestmark = pytest.mark.agents

CHILDS_TASK = "CHILD-TASK: name a fruit."
CHILDS_ANSWER = "It is the pear."
CHILD = {"when": [CHILDS_TASK], "unless": [*NOT_THE_TASK, "TASK-PARENT"], "turns": [turn(say=CHILDS_ANSWER)]}

CALLS: dict[str, list[Turn]] = {
    "claude": [
        turn(call("Agent", description="Name a fruit", prompt=CHILDS_TASK, subagent_type="general-purpose")),
    ],
    "codex": [turn(call("multi_agent_v1__spawn_agent", message=CHILDS_TASK))],
    "opencode": [
        turn(call("task", description="Name a fruit", prompt=CHILDS_TASK, subagent_type="general")),
    ],
}
"""How each starts a child."""

SPAWNED = {
    "when": ["TASK-PARENT", r'"agent_id":"(?P<agent>[0-9a-f-]{36})"'],
    "turns": [turn(), turn(call("multi_agent_v1__wait_agent", targets=["{{agent}}"])), turn(say=ANSWER)],
}
"""Codex's parent has to wait for its child, by the id that it got."""

MARKS = {"claude": "x-claude-code-agent-id", "codex": "x-codex-parent-thread-id", "opencode": "x-parent-session-id"}
"""A header that only a child's requests have."""


def is_childs(request: Request) -> bool:
    """Whether the conversation begins with the child's task."""
    body = request.body.decode()
    return CHILDS_TASK in body and "TASK-PARENT" not in body


@pytest.mark.parametrize("agent", [CLAUDE, CODEX, OPENCODE], ids=lambda agent: agent.name)
async def test_a_child_agents_requests_are_of_its_parents_session(agent: Program, workplace: Workplace) -> None:
    installed(agent)
    script = [CHILD, SPAWNED, conversation("PARENT", [*CALLS[agent.name], turn(say=ANSWER)]), DEFAULT]
    async with recorded({"a": scripted(script)}) as running:
        ran = await workplace.run(agent, running.url, task_text("PARENT", workplace.work))
        asked, lines = running.recorder.turns(), running.lines()
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    assert {one.status for one in asked} == {200}, [(one.path, one.status) for one in asked]
    childs = [one for one in asked if is_childs(one)]
    assert childs, [one.headers for one in asked]
    assert [MARKS[agent.name] in one.headers for one in asked] == [is_childs(one) for one in asked]
    sessions = {line.context.session.name for line in lines if line.context.session is not None}
    assert len(sessions) == 1, sessions
    assert CHILDS_ANSWER in asked[-1].body.decode()
