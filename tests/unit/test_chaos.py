"""Chaos' decisions: what is asked, when and whom it strikes, what it hears, and what it makes of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import psutil
import pytest
import yaml

from chaos import analysis, changes, options, procs, report, sampling, service
from chaos.analysis import Findings, InjectedFault, Streamed
from chaos.changes import Change
from chaos.events import take_event, take_whole
from chaos.fleet import Fleet, fleet_of
from chaos.options import BadOptions, ChaosOptions, Fault
from chaos.request_spec import Api, PromptKind, RequestRules, RequestSpec, draw_requests
from chaos.response_recorder import Answer, Recorder
from chaos.service import Access
from chaos.stream import Recording, send_request
from serve_app.cli import serve_api
from serve_app.cli.serve_api import ServeDetails, StatusUnknown
from serve_app.config.profile import ROOT

RULES = RequestRules("m", tuple(Api), tuple(PromptKind), (40, 200), seed=0)
ANSWER = Answer((("reasoning", "AAAA"), ("content", "BCDEFGHI")), "length", 7, 12)


def given(*flags: str) -> ChaosOptions:
    parser = argparse.ArgumentParser()
    options.add_flags(parser)
    return options.read(parser.parse_args(flags))


# ---- options ---------------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_a_sensible_run() -> None:
    found = given()
    assert found.fault is Fault.KILL
    assert found.apis == tuple(Api)
    assert found.kinds == (PromptKind.TEXT,)
    assert (found.at_token, found.faults, found.distinct_requests) == (None, None, 64)


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--url", "http://192.0.2.1:8000"], "--yes"),
        (["--url", "http://no-such-host.invalid"], "--yes"),
        (["--apis", "chat,telegraph"], "there are chat, completions"),
        (["--kinds", "smell"], "there are text"),
        (["--streams", "0"], "at least 1"),
        (["--at-token", "soon"], "random"),
        (["--at-token", "500"], "--tokens"),
        (["--tokens", "9"], "40-200"),
        (["--tokens", "90-80"], "40-200"),
        (["--fault", "none"], "--requests"),
        (["--requests", "10"], "--fault none or upgrade"),
        (["--streams", "2", "--faults", "3"], "one at most"),
        (["--min-up", "1"], "one to stand in"),
        (["--min-up", "2", "--fault", "slow"], "ends a replica"),
    ],
)
def test_a_wrong_command_line_is_told_what_to_give(flags: list[str], hint: str) -> None:
    with pytest.raises(BadOptions, match=hint):
        given(*flags)


def test_far_away_it_wants_to_be_told_twice() -> None:
    assert given("--url", "http://192.0.2.1:8000/v1", "--yes").url == "http://192.0.2.1:8000"


# ---- what is asked ---------------------------------------------------------------------------------------------------


def test_the_same_seed_asks_the_same_and_every_request_is_another() -> None:
    specs = draw_requests(RULES, 60)
    assert specs == draw_requests(RULES, 60)
    assert specs != draw_requests(replace(RULES, seed=1), 60)
    assert len({(spec.path, spec.body) for spec in specs}) == 60
    assert all(40 <= spec.max_tokens <= 200 for spec in specs)


def test_apis_take_turns_and_ask_only_for_what_they_have() -> None:
    specs = draw_requests(RULES, 40)
    assert [spec.api for spec in specs[:4]] == list(Api)
    assert {spec.kind for spec in specs if spec.api is Api.COMPLETIONS} == {PromptKind.TEXT}
    assert {spec.kind for spec in specs if spec.api is Api.CHAT} == set(PromptKind)
    assert PromptKind.JSON not in {spec.kind for spec in specs if spec.api is Api.MESSAGES}


def test_text_has_a_certain_length_where_the_api_can_say_so() -> None:
    bodies = {spec.api: json.loads(spec.body) for spec in draw_requests(replace(RULES, kinds=(PromptKind.TEXT,)), 4)}
    assert [api for api, body in bodies.items() if body.get("ignore_eos")] == [
        Api.CHAT,
        Api.COMPLETIONS,
        Api.RESPONSES,
    ]
    assert all(body["temperature"] == 0 and body["stream"] for body in bodies.values())


def test_a_closed_loop_asks_every_api_both_ways() -> None:
    specs = draw_requests(replace(RULES, streams_only=False, kinds=(PromptKind.TEXT,)), 8)
    assert {(spec.api, spec.stream) for spec in specs} == {(api, stream) for api in Api for stream in (True, False)}


# ---- what is heard ---------------------------------------------------------------------------------------------------


def chat(delta: dict[str, object] | None = None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}]
    return json.dumps({"id": "c-1", "choices": choices, **more}).encode()


CHAT = [
    chat({"role": "assistant", "content": ""}),
    chat({"reasoning": "AA"}),
    chat({"reasoning": "AA"}),
    chat({"content": "BCDE"}),
    chat({"content": "FGHI"}, finish="length"),
    chat(usage={"prompt_tokens": 7, "completion_tokens": 12}),
    b"[DONE]",
]


def message(kind: str, **more: object) -> bytes:
    return json.dumps({"type": kind, **more}).encode()


MESSAGE = [
    message("message_start", message={"id": "m-1", "usage": {"input_tokens": 7, "output_tokens": 0}}),
    message("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
    message("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "AAAA"}),
    message("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "x"}),
    message("content_block_stop", index=0),
    message("ping"),
    message("content_block_start", index=1, content_block={"type": "text", "text": ""}),
    message("content_block_delta", index=1, delta={"type": "text_delta", "text": "BCDEFGHI"}),
    message("content_block_stop", index=1),
    message(
        "message_delta",
        delta={"stop_reason": "length"},
        usage={"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 12},
    ),
    message("message_stop"),
]

OUTPUT = [
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "AAAA"}]},
    {"type": "message", "content": [{"type": "output_text", "text": "BCDEFGHI"}]},
]
WHOLE_RESPONSE = {
    "id": "r-1",
    "status": "length",
    "output": OUTPUT,
    "usage": {"input_tokens": 7, "output_tokens": 12},
}
RESPONSE = [
    message("response.created", sequence_number=0, response={"id": "r-1", "status": "in_progress", "output": []}),
    message("response.reasoning_text.delta", sequence_number=1, delta="AAAA"),
    message("response.output_text.delta", sequence_number=2, delta="BCDEFGHI"),
    message("response.output_text.done", sequence_number=3, text="BCDEFGHI"),
    message("response.completed", sequence_number=4, response=WHOLE_RESPONSE),
]


def heard_in(api: Api, events: list[bytes]) -> Answer:
    recorder = Recorder()
    for event in events:
        take_event(api, recorder, event)
    return recorder.answer()


@pytest.mark.parametrize(("api", "events"), [(Api.CHAT, CHAT), (Api.MESSAGES, MESSAGE), (Api.RESPONSES, RESPONSE)])
def test_every_protocol_says_the_same_answer(api: Api, events: list[bytes]) -> None:
    assert heard_in(api, events) == ANSWER


def test_how_a_text_is_cut_into_events_is_no_difference() -> None:
    merged = [*CHAT[:3], chat({"content": "BCDEFGHI"}, finish="length"), *CHAT[5:]]
    assert heard_in(Api.CHAT, merged) == ANSWER


def test_an_answer_in_one_piece_is_heard_like_a_stream() -> None:
    choices = [{"message": {"reasoning": "AAAA", "content": "BCDEFGHI"}, "finish_reason": "length"}]
    usage = {"prompt_tokens": 7, "completion_tokens": 12}
    blocks = [{"type": "thinking", "thinking": "AAAA"}, {"type": "text", "text": "BCDEFGHI"}]
    wholes = {
        Api.CHAT: {"id": "1", "choices": choices, "usage": usage},
        Api.MESSAGES: {"content": blocks, "stop_reason": "length", "usage": {"input_tokens": 7, "output_tokens": 12}},
        Api.RESPONSES: WHOLE_RESPONSE,
    }
    for api, body in wholes.items():
        recorder = Recorder()
        take_whole(api, recorder, json.dumps(body).encode())
        assert recorder.answer() == ANSWER


def test_a_completion_is_content() -> None:
    event = json.dumps({"id": "1", "choices": [{"text": "AB", "finish_reason": "stop"}]}).encode()
    assert heard_in(Api.COMPLETIONS, [event]).parts == (("content", "AB"),)


def test_tool_calls_are_heard_with_their_name_and_arguments_whatever_the_protocol() -> None:
    calls = [
        chat({"tool_calls": [{"index": 0, "id": "random", "function": {"name": "weather", "arguments": ""}}]}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]}, finish="tool_calls"),
    ]
    blocks = [
        message("content_block_start", index=0, content_block={"type": "tool_use", "id": "r", "name": "weather"}),
        message("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"city": "Oslo"}'}),
    ]
    events = [
        message("response.output_item.added", output_index=0, item={"type": "function_call", "name": "weather"}),
        message("response.function_call_arguments.delta", output_index=0, delta='{"city": "Oslo"}'),
    ]
    for api, said in ((Api.CHAT, calls), (Api.MESSAGES, blocks), (Api.RESPONSES, events)):
        assert heard_in(api, said).parts == (("tool 0", 'weather {"city": "Oslo"}'),)


ERROR = {"error": {"message": "no", "code": 503}}


@pytest.mark.parametrize(
    ("api", "events", "flaw"),
    [
        (Api.CHAT, CHAT[:-1], "the end marker is missing"),
        (Api.CHAT, [*CHAT[:4], *CHAT[5:]], "no finish reason"),
        (Api.CHAT, [*CHAT[:5], CHAT[-1]], "no usage"),
        (Api.CHAT, [*CHAT[:3], chat(**ERROR), *CHAT[3:]], "error event"),
        (Api.CHAT, [*CHAT, CHAT[3]], "after the end"),
        (Api.CHAT, [*CHAT[:5], *CHAT[4:]], "finished twice"),
        (Api.CHAT, [*CHAT[:3], chat({"content": "B"}, id="c-2"), *CHAT[3:]], "id became c-2"),
        (Api.MESSAGES, [MESSAGE[0], *MESSAGE], "second message_start"),
        (Api.MESSAGES, [*MESSAGE[:5], message("error", error={"type": "api_error"})], "error event"),
        (Api.RESPONSES, [*RESPONSE[:2], *RESPONSE[3:]], "event 3 came where 2 was due"),
        (Api.RESPONSES, [*RESPONSE[:2], *RESPONSE[3:]], "content: the closing event does not say"),
        (Api.RESPONSES, RESPONSE[:4], "the end marker is missing"),
    ],
)
def test_what_no_good_answer_has_is_a_flaw(api: Api, events: list[bytes], flaw: str) -> None:
    assert any(flaw in found for found in heard_in(api, events).flaws)


# ---- on the wire -----------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ASK = draw_requests(RULES, 1)[0]


@asynccontextmanager
async def server(answer: bytes, *, closes: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """Answers every request with these bytes, and hangs up then or says nothing more."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if not closes:
            await over.wait()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client
        over.set()


def chunked(events: list[bytes], *, end: bool = True) -> bytes:
    data = b": keep-alive\n\n" + b"".join(b"data: " + event + b"\n\n" for event in events)
    return HEAD + b"%x\r\n%s\r\n" % (len(data), data) + (b"0\r\n\r\n" if end else b"")


async def test_a_stream_is_followed_to_its_end_and_tells_how_far_it_is() -> None:
    brought: list[int] = []
    async with server(chunked(CHAT)) as client:
        recording = await send_request(client, ASK, "id-1", 5.0, brought.append)
    assert recording.finished
    assert recording.answer == ANSWER
    assert brought[-1] == ANSWER.characters
    assert len(recording.text_s) == len(brought)


@pytest.mark.parametrize(
    ("answer", "closes", "error"),
    [
        (chunked(CHAT[:4], end=False), True, "RemoteProtocolError"),
        (chunked(CHAT[:4]), True, "end marker"),
        (chunked(CHAT[:4], end=False), False, "not over after"),
        (chunked([b"{half"]), True, "not what the protocol says"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy", True, "HTTP 503"),
    ],
)
async def test_what_goes_wrong_with_a_request_is_data(answer: bytes, *, closes: bool, error: str) -> None:
    async with server(answer, closes=closes) as client:
        recording = await send_request(client, ASK, "id-1", 10.0 if closes else 2.0, lambda _: None)
    assert error in recording.error
    assert not recording.finished
    assert recording.body


async def test_nobody_there_is_data_too() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False) as client:
        recording = await send_request(client, ASK, "id-1", 5.0, lambda _: None)
    assert (recording.status, recording.finished) == (0, False)


# ---- choices ---------------------------------------------------------------------------------------------------------


def test_waves_hold_every_stream_once_and_are_all_struck() -> None:
    rounds = sampling.plan_rounds(1000, 64, None, 0)
    assert len(rounds) == 16
    assert sum(round_.count for round_ in rounds) == 1000
    assert [round_.first for round_ in rounds[1:]] == [round_.first + round_.count for round_ in rounds[:-1]]
    assert all(round_.injected and round_.count <= 64 for round_ in rounds)


def test_more_faults_make_more_waves_and_fewer_leave_some_alone() -> None:
    assert [round_.count for round_ in sampling.plan_rounds(24, 32, 2, 0)] == [12, 12]
    rounds = sampling.plan_rounds(100, 10, 3, 0)
    assert len(rounds) == 10
    assert sum(round_.injected for round_ in rounds) == 3
    assert rounds == sampling.plan_rounds(100, 10, 3, 0)


def test_a_moment_is_a_token_of_a_stream_that_goes_on_after_it() -> None:
    specs = draw_requests(replace(RULES, kinds=(PromptKind.TEXT,)), 8)
    expected = {spec.number: replace(ANSWER, output_tokens=4 + spec.number) for spec in specs}
    for round_ in sampling.plan_rounds(400, 8, None, 0):
        fault_time = sampling.choose_fault_time(round_, specs, expected, None, 0)
        assert round_.first <= fault_time.stream < round_.first + round_.count
        assert 1 <= fault_time.token < 4 + fault_time.stream % 8
        assert 1 <= fault_time.characters <= ANSWER.characters
    given_token = sampling.choose_fault_time(sampling.Round(0, 0, 8, injected=True), specs, expected, 10, 0)
    assert (given_token.stream, given_token.token) == (7, 10)
    with pytest.raises(sampling.NoFaultTime, match="more than 11"):
        sampling.choose_fault_time(sampling.Round(0, 0, 8, injected=True), specs, expected, 11, 0)


def test_every_replica_is_chosen_sooner_or_later() -> None:
    chosen = [sampling.choose_replica(["b", "a", "c"], round_, 0) for round_ in range(30)]
    assert set(chosen) == {"a", "b", "c"}
    assert chosen == [sampling.choose_replica(["c", "b", "a"], round_, 0) for round_ in range(30)]


@pytest.mark.parametrize(("upgrades", "points"), [(0, []), (1, [5000]), (2, [3333, 6666])])
def test_changes_begin_evenly_between_the_requests(upgrades: int, points: list[int]) -> None:
    assert changes.change_points(10_000, upgrades) == points


# ---- what Serve says -------------------------------------------------------------------------------------------------


def details(**states: str) -> dict[str, object]:
    replicas = [
        {"replica_id": name, "state": state, "pid": 7, "node_id": "n", "node_ip": "10.0.0.1", "actor_id": f"act-{name}"}
        for name, state in states.items()
    ]
    app = {
        "deployments": {"engine": {"replicas": replicas}},
        "deployed_app_config": {"name": "step", "import_path": "x:y", "runtime_env": {"env_vars": {"A": "1"}}},
    }
    other = {"deployments": {}, "deployed_app_config": {"name": "other"}}
    return {"applications": {"step": app, "other": other}, "proxy_location": "EveryNode", "http_options": {"port": 1}}


def test_the_fleet_is_whole_when_others_run_in_place_of_the_lost() -> None:
    expected_counts = {"engine": 2}
    assert not fleet(a="RUNNING", b="RUNNING").is_recovered(expected_counts, frozenset("a"))
    assert not fleet(a="STOPPING", b="RUNNING", c="STARTING").is_recovered(expected_counts, frozenset("a"))
    assert fleet(a="STOPPING", b="RUNNING", c="RUNNING").is_recovered(expected_counts, frozenset("a"))
    assert Fleet(fleet(b="RUNNING").replicas, {"engine": 1}).is_recovered(
        expected_counts, frozenset("a")
    )  # it was told to shrink
    assert fleet(a="RUNNING", b="STARTING", c="STARTING").states("engine") == "1 running, 2 starting"


def fleet(**states: str) -> Fleet:
    return fleet_of(as_read(details(**states)), "step")


def as_read(details: object) -> ServeDetails:
    return serve_api.decode(json.dumps(details).encode())


@pytest.mark.parametrize("wrong", [{}, {"applications": {}}, {"applications": {"other": {}}}])
def test_an_application_that_is_not_there_is_said_so(wrong: object) -> None:
    with pytest.raises(StatusUnknown, match="--application"):
        fleet_of(as_read(wrong), "step")


def test_an_upgrade_changes_one_variable_and_keeps_all_else() -> None:
    config = changes.changed_config(as_read(details(a="RUNNING")), "step", Change.UPGRADE, "v2")
    assert config == {
        "proxy_location": "EveryNode",
        "http_options": {"port": 1},
        "applications": [
            {
                "name": "step",
                "import_path": "x:y",
                "runtime_env": {"env_vars": {"A": "1", changes.UPGRADE_VARIABLE: "v2"}},
            },
            {"name": "other"},
        ],
    }


def test_serve_takes_an_upgrade_of_what_it_runs() -> None:
    from ray.serve import schema

    document = yaml.safe_load((ROOT / "deploy.yaml").read_text(encoding="utf-8"))
    deployed = schema.ServeDeploySchema.model_validate(document)
    (application,) = deployed.applications
    # As `get_serve_instance_details` dumps them.
    running = {
        "proxy_location": "EveryNode",
        "http_options": deployed.http_options.model_dump(exclude_unset=True),
        "grpc_options": deployed.grpc_options.model_dump(exclude_unset=True),
        "applications": {"step": {"deployed_app_config": application.model_dump(exclude_unset=True)}},
    }
    upgraded = schema.ServeDeploySchema.model_validate(
        changes.changed_config(as_read(running), "step", Change.UPGRADE, "v2")
    )
    (changed_config,) = upgraded.applications
    assert changed_config.runtime_env["env_vars"].pop(changes.UPGRADE_VARIABLE) == "v2"
    assert changed_config == application
    assert upgraded.http_options == deployed.http_options


def scaled(deployed: dict[str, object], change: Change, deployment: dict[str, object]) -> dict[str, object]:
    """The application's configuration after a change; Serve says `deployment` of the one that changes."""
    name = change.deployments[0]
    told = {"deployments": {name: {"deployment_config": deployment}}, "deployed_app_config": deployed}
    (config,) = changes.changed_config(as_read({"applications": {"step": told}}), "step", change, "v2")["applications"]  # type: ignore[misc]
    return config


def test_a_replacement_of_the_ingresses_keeps_what_else_was_said_of_them() -> None:
    deployed: dict[str, object] = {"name": "step", "deployments": [{"name": "ingress", "num_replicas": 3}]}
    actor = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"A": "1"}}}
    config = scaled(deployed, Change.INGRESS, {"ray_actor_options": actor})
    env = {"A": "1", changes.UPGRADE_VARIABLE: "v2"}
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": env}}
    assert config["deployments"] == [{"name": "ingress", "num_replicas": 3, "ray_actor_options": options}]


@pytest.mark.parametrize(("change", "count"), [(Change.ENGINE_OUT, 3), (Change.ENGINE_IN, 1)])
def test_a_fixed_number_of_replicas_is_changed_by_one(change: Change, count: int) -> None:
    config = scaled({"name": "step"}, change, {"num_replicas": 2})
    assert config["deployments"] == [{"name": "engine", "num_replicas": count}]


def test_a_number_that_follows_the_load_is_not_changed() -> None:
    with pytest.raises(StatusUnknown, match="leave it out of --changes"):
        scaled({"name": "step"}, Change.INGRESS_OUT, {"autoscaling_config": {"min_replicas": 1}})


def test_a_change_is_done_when_the_new_ones_run_and_no_old_one_does() -> None:
    before = fleet(a="RUNNING", b="RUNNING")
    assert not changes.is_done(Change.ENGINE_OUT, before, fleet(a="RUNNING", b="RUNNING", c="STARTING"))
    assert changes.is_done(Change.ENGINE_OUT, before, fleet(a="RUNNING", b="RUNNING", c="RUNNING"))
    assert changes.is_done(Change.ENGINE_IN, before, fleet(a="RUNNING", b="STOPPING"))
    assert not changes.is_done(Change.UPGRADE, before, fleet(a="RUNNING", c="RUNNING"))
    assert changes.is_done(Change.UPGRADE, before, fleet(a="STOPPING", c="RUNNING", d="RUNNING"))


def test_counters_are_read_with_their_labels() -> None:
    page = '# HELP x y\nray_step_migrations_total{replica="a"} 3.0\nray_step_migrations_total_created{replica="a"} 9\n'
    assert service.counters(page, service.RESUMES) == [('{replica="a"}', 3.0)]


def test_access_lines_are_found_among_others() -> None:
    line = '2026 INFO serve_app.access: request {"id":"c-1","replica":["a","b"],"migrations":1,"total_s":0.1}'
    half = 'serve_app.access: request {"id":"c-0","repl'
    assert service.access_of([half, "x", line]) == {"c-1": Access("c-1", 1, ["a", "b"])}


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def is_now(child: subprocess.Popen[bytes], status: str) -> bool:
    return bool(psutil.Process(child.pid).status() == status)


def until(condition: Callable[[], bool]) -> None:
    deadline = threading.Event()
    for _ in range(500):
        if condition():
            return
        deadline.wait(0.01)
    raise AssertionError("not within five seconds")


def test_a_process_is_stopped_and_ended_by_its_number_and_birth(process: subprocess.Popen[bytes]) -> None:
    (found,) = procs.find(process.pid, "cut")
    assert procs.send([found], signal.SIGSTOP) == 1
    until(lambda: is_now(process, psutil.STATUS_STOPPED))
    assert procs.send([procs.Proc(found.pid, found.started_s - 100)], signal.SIGKILL) == 0
    assert procs.send([found], signal.SIGKILL) == 1
    assert process.wait() == -signal.SIGKILL
    assert procs.send([found], signal.SIGKILL) == 0


@pytest.mark.parametrize("fault", ["hang", "kill-engine"])
def test_an_engine_without_a_process_of_its_own_is_said_so(process: subprocess.Popen[bytes], fault: str) -> None:
    with pytest.raises(procs.NoEngineProcess):
        procs.find(process.pid, fault)
    assert procs.find(process.pid, "slow")[0].pid == process.pid


def test_the_engine_core_is_known_by_its_title() -> None:
    with subprocess.Popen(["sh", "-c", 'exec -a "VLLM::EngineCore" sleep 60 & wait'], executable="/bin/bash") as parent:
        until(lambda: any(procs._is_core(child) for child in psutil.Process(parent.pid).children()))
        (core,) = procs.find(parent.pid, "kill-engine")
        assert core.pid != parent.pid
        assert procs.send([core], signal.SIGKILL) == 1


def test_the_head_is_found_by_the_raylet_that_started_a_replica() -> None:
    raylet = ["-c", "import subprocess; subprocess.run(['sleep', '60'])", "--gcs-address=10.0.0.1:6379"]
    with subprocess.Popen([sys.executable, *raylet]) as parent:
        until(lambda: len(psutil.Process(parent.pid).children()) == 1)
        (replica,) = psutil.Process(parent.pid).children()
        assert procs.gcs_address([replica.pid]) == "10.0.0.1:6379"
        replica.kill()


def test_a_slowed_process_runs_again_when_told_to_end(process: subprocess.Popen[bytes]) -> None:
    stop = threading.Event()
    slowing = threading.Thread(target=procs.slow, args=(procs.find(process.pid, "slow"), 60.0, stop))
    slowing.start()
    until(lambda: is_now(process, psutil.STATUS_STOPPED))
    stop.set()
    slowing.join(timeout=5)
    until(lambda: not is_now(process, psutil.STATUS_STOPPED))


# ---- the verdict -----------------------------------------------------------------------------------------------------


def recording(
    spec: RequestSpec = ASK, answer: Answer = ANSWER, *, error: str = "", name: str = "r", times: str = "0 1 5"
) -> Recording:
    return Recording(spec, name, 200, answer, error, "", 0.0, 10.0, tuple(float(one) for one in times.split()))


@pytest.mark.parametrize(
    ("other", "where"),
    [
        (ANSWER, ""),
        (replace(ANSWER, parts=(("reasoning", "AAAA"), ("content", "BCDEFFGHI"))), "content, character 5 of 8"),
        (replace(ANSWER, parts=(("reasoning", "AAAA"), ("content", "BCDEFGH"))), "content, character 7 of 8"),
        (replace(ANSWER, parts=(("content", "AAAABCDEFGHI"),)), "content where reasoning was due"),
        (replace(ANSWER, parts=ANSWER.parts[:1]), "1 parts instead of 2"),
        (replace(ANSWER, finish="stop"), "finish: 'stop' instead of 'length'"),
        (replace(ANSWER, output_tokens=13), "output_tokens: 13 instead of 12"),
    ],
)
def test_it_is_said_where_two_answers_part(other: Answer, where: str) -> None:
    found = analysis.first_difference(ANSWER, other)
    assert found.startswith(where)
    assert bool(found) == bool(where)


def seen(*streams: Streamed, **more: object) -> Findings:
    injected = InjectedFault(0, "kill", "a", "pid 1", 5, 0, 2.0, 0.0)
    return replace(Findings({0: recording()}, list(streams), [injected], unfinished=0), **more)


def test_the_promise_held_if_all_finished_and_are_the_same() -> None:
    findings = seen(Streamed(0, 0, recording()), Streamed(1, 0, recording(name="s")))
    found = analysis.analyze(findings, 2)
    assert analysis.passed(found, findings)
    assert found.finished() == 2


@pytest.mark.parametrize(
    ("stream", "more"),
    [
        (recording(error="cut"), {}),
        (recording(answer=replace(ANSWER, finish="stop")), {}),
        (recording(), {"unfinished": 1}),
        (recording(), {"problems": ["interrupted"]}),
        (recording(), {"injected": [InjectedFault(0, "kill", "a", "", 5, 0, 2.0, 0.0, error="gone")]}),
    ],
)
def test_the_promise_did_not_hold_otherwise(stream: Recording, more: dict[str, object]) -> None:
    findings = seen(Streamed(0, 0, stream), **more)
    found = analysis.analyze(findings, 1)
    assert not analysis.passed(found, findings)
    assert "FAILED" in list(report.lines(given(), findings, found))


def test_a_stream_that_was_never_heard_is_missed() -> None:
    findings = seen(Streamed(0, 0, recording()))
    assert not analysis.passed(analysis.analyze(findings, 2), findings)


def test_who_was_hit_is_what_the_access_log_says() -> None:
    streams = [Streamed(number, 0, recording(name=f"s{number}")) for number in range(3)]
    access = {"s0": Access("s0", 1, ["a", "b"]), "s1": Access("s1", 0, ["b"]), "s2": Access("s2", 0, ["a"])}
    injected = [InjectedFault(0, "kill", "a", "pid 1", 5, 0, 2.0, 0.0)]
    hit, known = analysis.streams_hit(streams, injected, access)
    assert known
    assert [one.stream for one in hit] == [0, 2]
    assert analysis.streams_hit(streams, injected, {}) == (streams, False)
    assert analysis.streams_hit(streams, [], access) == ([], True)


def test_silence_is_between_two_pieces_of_text() -> None:
    assert analysis.longest_silence_s(recording(times="1 2 7 8")) == 5.0
    assert analysis.longest_silence_s(recording(times="1")) is None
    found = analysis.silences([recording(times="0 1"), recording(times="0 3"), recording(times="")])
    assert found == analysis.Silences(2, 2.0, 3.0)


@pytest.mark.parametrize(
    ("times", "wait_s"),
    [
        ("1 2 5 6", 3.0),
        ("1 2 2.1 5 9", 2.9),  # one piece was on its way; the 4 s later are another story
        ("1 2", None),  # nothing after it
        ("3 4", None),  # nothing before it
    ],
)
def test_the_wait_is_the_one_that_the_fault_made(times: str, wait_s: float | None) -> None:
    assert analysis.wait_across_s(recording(times=times), 2.0) == wait_s


def test_the_report_says_what_was_seen_and_json_has_it_all() -> None:
    findings = seen(
        Streamed(0, 0, recording(name="s0")),
        Streamed(1, 0, recording(name="s1", error="HTTP 503")),
        access={"s0": Access("s0", 1, ["a", "b"]), "s1": Access("s1", 0, [])},
        migrations=1,
        recovery_s=[4.0],
    )
    found = analysis.analyze(findings, 2)
    text = "\n".join(report.lines(given(), findings, found))
    assert "1  200: HTTP 503" in text
    assert "1 by the service's metrics, 1 in its log" in text
    text_by_channel = json.loads(report.as_json(given(), findings, found))
    assert (text_by_channel["passed"], text_by_channel["finished"], text_by_channel["failed"]) == (False, 1, 1)
    assert [stream["hit"] for stream in text_by_channel["streams"]] == [True, False]
    assert text_by_channel["faults"][0]["replica_id"] == "a"
