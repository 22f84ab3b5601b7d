"""Sessions of coding agents have the measured shape, and are sent as agents send them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loadtest.api.requests import Api
from loadtest.cli.main import main, read_args
from loadtest.data.agents import AGENTS_PRESET, agents
from loadtest.data.prompt import AgentsSpec, DatasetSpec, Prompt
from loadtest.data.session_ids import SessionIds, SessionName, session_name
from loadtest.data.tokenizer import PromptTokenizer
from loadtest.errors import RequestOutcome, UsageError
from loadtest.fleet.access_log import read_replicas
from loadtest.http.probe import ServedModel
from loadtest.load.plan import TargetSpec, make_plan
from loadtest.load.runner import RunResult
from loadtest.load.schedule import LoadSchedule, LoadSpec
from loadtest.load.worker import sessions_of
from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer
from tests.loadtest.conftest import endpoint_of, mock_process

StartMock = Callable[..., Awaitable[MockServer]]
RunJob = Callable[..., Awaitable[RunResult]]

FULL = DatasetSpec(
    dataset="agents", input_len=142_000, output_len=444, turns=43, think_s=5.0, agents=AgentsSpec(total_sessions=300)
)
SMALL = replace(FULL, turns=6, think_s=0.0, agents=AgentsSpec(scale=0.01, child_ratio=1.0))


def last_turns(prompts: list[Prompt], *, children: bool) -> list[Prompt]:
    last = {prompt.session: prompt for prompt in prompts}
    return [prompt for prompt in last.values() if (prompt.parent >= 0) == children]


def test_the_preset_has_the_measured_shape() -> None:
    assert {name: getattr(FULL, name) for name in AGENTS_PRESET if name != "concurrency"} == {
        name: value for name, value in AGENTS_PRESET.items() if name != "concurrency"
    }
    prompts = agents(FULL, None, 300)
    ends = last_turns(prompts, children=False)
    assert len(ends) == 300
    assert np.median([end.turn + 1 for end in ends]) == pytest.approx(43, rel=0.15)
    assert np.median([end.prompt_tokens for end in ends]) == pytest.approx(142_000, rel=0.15)
    assert np.median([prompt.output_tokens for prompt in prompts]) == pytest.approx(444, rel=0.05)
    assert max(end.prompt_tokens + end.output_tokens for end in ends) < 262_144
    parents = {prompt.parent for prompt in prompts if prompt.parent >= 0}
    assert len(parents) / len(ends) == pytest.approx(0.44, abs=0.07)
    assert {prompt.shared_prefix_tokens for prompt in prompts} == {15_000, 27_386, 50_000}
    assert np.median([prompt.think_s for prompt in prompts if prompt.think_s]) == pytest.approx(5, rel=0.1)


def test_scale_shortens_prompts_and_answers_but_not_sessions(tokenizer: PromptTokenizer) -> None:
    full, small = (agents(replace(FULL, agents=AgentsSpec(scale=scale)), tokenizer, 20) for scale in (1.0, 0.02))
    ends = [np.median([end.prompt_tokens for end in last_turns(prompts, children=False)]) for prompts in (full, small)]
    assert ends[1] / ends[0] == pytest.approx(0.02, rel=0.1)
    turns = [np.median([end.turn for end in last_turns(prompts, children=False)]) for prompts in (full, small)]
    assert turns[1] == pytest.approx(turns[0], rel=0.1)


def test_the_same_seed_gives_the_same_sessions(tokenizer: PromptTokenizer) -> None:
    assert agents(SMALL, tokenizer, 3) == agents(SMALL, tokenizer, 3)
    other = agents(replace(SMALL, seed=1), tokenizer, 3)
    first = agents(SMALL, tokenizer, 3)[0]
    assert [str(prompt.messages[0]["content"])[:2] for prompt in (first, other[0])] == ["0:", "1:"]


@pytest.mark.parametrize("scale", [0.1, 0.02])
def test_texts_are_as_long_as_planned(tokenizer: PromptTokenizer, scale: float) -> None:
    """What the model's chat template writes around messages is part of a turn's planned length."""
    shapes = {role: f"<|im_start|>{role}\n%s<|im_end|>\n" for role in ("system", "user")}
    shapes["tool"] = "<|im_start|>tool_response\n<tool_response>%s</tool_response><|im_end|>\n"
    prompts = agents(replace(FULL, agents=AgentsSpec(scale=scale, child_ratio=0)), tokenizer, 3)
    for turns in sessions_of(prompts):
        tokens = 0
        for index in turns:
            text = "".join(shapes[str(message["role"])] % message["content"] for message in prompts[index].messages)
            tokens += len(tokenizer.encode(text + "<|im_start|>assistant\n<think>\n"))
            assert tokens == pytest.approx(prompts[index].prompt_tokens, rel=0.04)
            tokens += prompts[index].output_tokens + len(tokenizer.encode("\n</think>\n<|im_end|>\n"))


NAMES = {
    SessionIds.CLAUDE_CODE: SessionName({"x-claude-code-session-id": "root"}, {}),
    SessionIds.CODEX: SessionName({"session-id": "root", "thread-id": "own"}, {"prompt_cache_key": "own"}),
    SessionIds.OPENCODE: SessionName({"x-session-id": "own"}, {}),
    SessionIds.PROMPT_CACHE_KEY: SessionName({}, {"prompt_cache_key": "own"}),
    SessionIds.NONE: SessionName({}, {}),
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_session_names_itself_as_its_program_does(kind: SessionIds) -> None:
    assert session_name(kind, 1, "own", "root") == NAMES[kind]


def test_mixed_takes_the_programs_in_turn() -> None:
    found = [session_name(SessionIds.MIXED, number, "own", "root") for number in range(4)]
    in_turn = (SessionIds.CLAUDE_CODE, SessionIds.CODEX, SessionIds.OPENCODE, SessionIds.CLAUDE_CODE)
    assert found == [NAMES[kind] for kind in in_turn]


async def test_a_prompt_is_the_one_before_its_answer_and_a_new_message(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.001, gap_s=0.0, reasoning_chunks=1))
    prompts = agents(replace(SMALL, agents=replace(SMALL.agents, session_ids="codex")), None, 1)
    job: dict[str, Any] = {"load": LoadSchedule(1), "session_header": "", "resend_reasoning": True}
    finished = await run_job(server.url, prompts, **job)
    assert all(record.ok for record in finished.run.records)
    sent: dict[int, list[bytes]] = {}
    for prompt, asked, headers in zip(prompts, server.requests, server.headers, strict=True):
        messages = [bytes(message) for message in asked.messages]
        before = sent.get(prompt.session, sent.get(prompt.parent, []))
        assert messages[: len(before)] == before
        added = [msgspec.json.decode(message) for message in messages[len(before) :]]
        if before:
            answer, message = added
            assert (answer["role"], message["role"]) == ("assistant", "tool")
            assert answer["reasoning"] == " word"
        else:
            assert [message["role"] for message in added] == ["system", "user"]
        sent[prompt.session] = messages
        assert asked.prompt_cache_key == headers["thread-id"]
        assert (headers["thread-id"] == headers["session-id"]) == (prompt.parent < 0)
    assert any(prompt.parent >= 0 for prompt in prompts)


async def test_a_failed_child_does_not_end_its_parent(start_mock: StartMock, run_job: RunJob) -> None:
    def turn(session: int, turn: int, parent: int = -1) -> Prompt:
        return Prompt(text="x", output_tokens=1, session=session, turn=turn, parent=parent)

    server = await start_mock(MockConfig(first_s=0.001, gap_s=0.0, fail_every=2, fault="error"))
    prompts = [turn(0, 0), turn(1, 0, parent=0), turn(1, 1, parent=0), turn(0, 1), turn(0, 2), turn(2, 0, parent=0)]
    finished = await run_job(server.url, prompts, load=LoadSchedule(2))
    outcomes = {record.index: record.outcome is RequestOutcome.OK for record in finished.run.records}
    assert outcomes == {0: True, 1: False, 3: True, 4: False}, "a session without its parent's conversation is not sent"


def test_options_that_agents_do_not_have_are_refused() -> None:
    target = TargetSpec("http://127.0.0.1:1")
    wrong: list[tuple[TargetSpec, DatasetSpec, LoadSpec]] = [
        (replace(target, api=Api.MESSAGES), SMALL, LoadSpec()),
        (target, replace(SMALL, num_prompts=3), LoadSpec()),
        (target, SMALL, LoadSpec(warmup=1)),
        (target, FULL, LoadSpec()),
    ]
    for where, data, load in wrong:
        with pytest.raises(UsageError):
            make_plan(where, data, load, endpoint_of(target.url), ServedModel("m", max_model_len=32_768))
    with pytest.raises(UsageError, match="--quick"):
        read_args(["run", "--preset", "agents", "--quick"])


@pytest.mark.parametrize(
    ("load", "sessions"),
    [
        (LoadSpec(concurrency=3), 6),
        (LoadSpec(concurrency=3, duration_s=60), 36),
        (LoadSpec(rate=2.0, duration_s=10), 24),
    ],
)
def test_a_load_has_enough_sessions(load: LoadSpec, sessions: int) -> None:
    target = TargetSpec("http://127.0.0.1:1")
    job = make_plan(target, SMALL, load, endpoint_of(target.url), ServedModel("m")).job
    assert len(sessions_of(job.prompts)) == sessions


@pytest.mark.parametrize(("routing", "low", "high"), [("session", 0.95, 1.05), ("round-robin", 0.3, 0.9)])
def test_the_report_tells_routing_by_session_from_routing_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], routing: str, low: float, high: float
) -> None:
    file = tmp_path / "run.json"
    flags = "--sessions 4 --total-sessions 8 --agents-scale 0.01 --turns 8 --think-time 0 --window-s 0.2 --quiet"
    with mock_process("--first-ms", "1", "--gap-ms", "0", "--replicas", "4", "--routing", routing) as url:
        assert main(["run", "--preset", "agents", "--url", url, *flags.split(), "--json", str(file)]) == 0
    found = json.loads(file.read_text())["loadtest"]["agents"]
    later = found["by_kind"]["later_turn"]
    assert low < later["share_of_possible"] < high
    assert found["requests"] == len(found["turns"]["session"]) == sum(window["requests"] for window in found["windows"])
    if routing == "round-robin":
        assert found["balance"]["max_by_mean"]["requests"] == pytest.approx(1, abs=0.1)
    text = capsys.readouterr().out
    assert all(title in text for title in ("Sessions of coding agents", "Load by replica", "Sessions over time"))
    assert "came from the server's cache, which lowers TTFT" not in text


def test_the_access_log_names_replicas(tmp_path: Path) -> None:
    log = tmp_path / "ingress.err"
    log.write_text(
        'INFO serve_app.access: request {"id":"run-7","replica":["a","b"],"x":{}}\x1b[0m\n'
        'INFO serve_app.access: request {"id":"run-8","replica":[]}\n'
        'INFO serve_app.access: request {"id":"other-9","replica":["c"]}\n'
        'INFO serve_app.router: request lost\nINFO serve_app.access: request {"id":"run-1'
    )
    assert read_replicas([str(log)], "run-") == {7: "b"}
