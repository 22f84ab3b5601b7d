"""The whole service over fake engines, through HAProxy, with the clients that people use."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.ray.cluster import Cluster, Probe, kill, until
from tests.ray.conftest import INGRESSES, MAX_QUEUED_REQUESTS, SLOTS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]  # the first test starts the service

MODEL = "step3p7-flash"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}]}
LONG = {**HELLO, "max_tokens": 2000, "ignore_eos": True}
"""Twenty seconds and more: nobody here waits for its end."""

ADMIN = [
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("GET", "/is_sleeping"),
    ("POST", "/collective_rpc"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/start_profile"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/invocations"),
    ("GET", "/ping"),
    ("GET", "/docs"),
    ("POST", "/v1/load_lora_adapter"),
]


@asynccontextmanager
async def http(service: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url(), trust_env=False, timeout=30) as client:
        yield client


@asynccontextmanager
async def openai_client(service: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        openai.DefaultAsyncHttpxClient(trust_env=False) as transport,
        openai.AsyncOpenAI(
            base_url=f"{service.url()}/v1", api_key="none", max_retries=0, timeout=30, http_client=transport
        ) as client,
    ):
        yield client


@asynccontextmanager
async def anthropic_client(service: Cluster) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        anthropic.DefaultAsyncHttpxClient(trust_env=False) as transport,
        anthropic.AsyncAnthropic(
            base_url=service.url(), api_key="none", max_retries=0, timeout=30, http_client=transport
        ) as client,
    ):
        yield client


# ---- the same text, streamed and not ---------------------------------------------------------------------------------


async def test_a_chat_says_the_same_streamed_and_not(service: Cluster) -> None:
    async with openai_client(service) as client:
        whole: Any = await client.chat.completions.create(**HELLO)
        stream: Any = await client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    message = whole.choices[0].message
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert message.content
    assert message.reasoning
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == message.reasoning
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert whole.choices[0].finish_reason == "stop"


async def test_a_completion_says_the_same_streamed_and_not(service: Cluster) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 30}
    async with openai_client(service) as client:
        whole: Any = await client.completions.create(**asked)
        stream: Any = await client.completions.create(**asked, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text
    assert text == whole.choices[0].text


async def test_a_response_says_the_same_streamed_and_not(service: Cluster) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "Say hello."}
    async with openai_client(service) as client:
        whole: Any = await client.responses.create(**asked)
        stream: Any = await client.responses.create(**asked, stream=True)
        events = [event async for event in stream]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text
    assert text == whole.output_text
    assert events[-1].type == "response.completed"


async def test_a_message_says_the_same_streamed_and_not(service: Cluster) -> None:
    asked: dict[str, Any] = {
        "model": "claude-anything",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "Say hello."}],
    }
    async with anthropic_client(service) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert [words(block) for block in streamed.content] == [words(block) for block in whole.content]
    assert streamed.usage.input_tokens == whole.usage.input_tokens
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert streamed.stop_reason == whole.stop_reason == "end_turn"


def words(block: Any) -> str:
    return str(block.thinking if block.type == "thinking" else block.text)


async def test_both_ingress_and_both_engine_replicas_take_part(service: Cluster) -> None:
    async with openai_client(service) as client:
        asked = [{**HELLO, "messages": [{"role": "user", "content": f"Count to {n}."}]} for n in range(24)]
        await asyncio.gather(*(client.chat.completions.create(**one) for one in asked))
    lines = [json.loads(line[line.index("{") :]) for line in service.logged("serve_app.access: request {")]
    assert len({replica for line in lines for replica in line["replica"]}) >= 2


# ---- headers and statuses --------------------------------------------------------------------------------------------


async def test_the_status_page_knows_the_whole_fleet(service: Cluster) -> None:
    async with http(service) as client:
        assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 200
        assert "<title>" in (await client.get("/status")).text

        async def whole() -> dict[str, Any] | None:
            fleet: dict[str, Any] = (await client.get("/status/fleet")).json()
            return fleet if len(fleet["ingresses"]) == INGRESSES and len(fleet["deployments"]) == 2 else None

        fleet = await until(whole, 30, "every ingress and Serve have answered")
    assert not fleet["problem"] and not fleet["silent_ingresses"]
    assert [one["takes_work"] for one in fleet["replicas"]] == [True, True]
    assert all(one["node"] and one["started_unix_s"] for one in fleet["replicas"]), "Serve knows where and since when"
    assert {one["name"]: one["target"] for one in fleet["deployments"]} == {"engine": 2, "ingress": INGRESSES}
    assert sum(one["requests"] for one in fleet["keys"]) >= 1, "of whichever ingress had it"
    assert any(one["record"]["output_tokens"] for one in fleet["slowest"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_id_that_is_given_comes_back_once(service: Cluster, *, stream: bool) -> None:
    async with http(service) as client:
        answer = await client.post(
            "/v1/chat/completions", json={**HELLO, "stream": stream}, headers={"x-request-id": "mine-1"}
        )
    assert answer.status_code == 200
    assert answer.headers.get_list("x-request-id") == ["mine-1"]


async def test_a_request_id_is_made_where_none_is_given(service: Cluster) -> None:
    async with http(service) as client:
        answers = [await client.post("/v1/chat/completions", json=HELLO) for _ in range(2)]
    ids = [answer.headers.get_list("x-request-id") for answer in answers]
    assert [len(one) for one in ids] == [1, 1]
    assert ids[0] != ids[1]


async def test_an_error_carries_one_request_id_too(service: Cluster) -> None:
    async with http(service) as client:
        answer = await client.post("/nowhere", json=HELLO, headers={"x-request-id": "mine-2"})
    assert answer.status_code == 404
    assert answer.headers.get_list("x-request-id") == ["mine-2"]


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_admin_routes_do_not_exist(service: Cluster, method: str, path: str) -> None:
    async with http(service) as client:
        answer = await client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (400, {"messages": "not a list"}),
        (404, {"model": "nobody"}),
        (413, {"messages": [{"role": "user", "content": "x" * 100_001}]}),
        (400, {"n": SLOTS + MAX_QUEUED_REQUESTS + 1}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_our_statuses_reach_the_client(
    service: Cluster, status: int, change: dict[str, object], *, stream: bool
) -> None:
    async with http(service) as client:
        answer = await client.post("/v1/chat/completions", json={**HELLO, **change, "stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == {404: "model_not_found", 413: "request_too_large"}.get(status)


async def test_a_full_house_and_when_to_come_back_reach_the_client(service: Cluster, probe: Probe) -> None:
    """Each ingress counts what it has let in itself: each gets some of the streams that are held."""
    async with http(service) as client, AsyncExitStack() as held:
        for _ in range(2 * INGRESSES):
            await held.enter_async_context(client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}))
        for stream in (False, True):
            asked = {**HELLO, "n": SLOTS + MAX_QUEUED_REQUESTS, "stream": stream}
            answer = await client.post("/v1/chat/completions", json=asked)
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
    await until_idle(probe)


# ---- clients that leave ----------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_a_stream_frees_its_slot(service: Cluster, probe: Probe) -> None:
    async with (
        http(service) as client,
        client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as s,
    ):
        chunks = s.aiter_bytes()  # dropped, it would close the stream
        await anext(chunks)
        assert await probe.unfinished() == 1
    await until_idle(probe)


async def test_a_client_that_leaves_before_the_answer_frees_its_slot(service: Cluster, probe: Probe) -> None:
    async with http(service) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=LONG))
        await until(lambda: has(probe, 1), 10, "a request in the engine")
        asking.cancel()
        await asyncio.wait([asking])
    await until_idle(probe)


async def until_idle(probe: Probe) -> None:
    async def idle() -> bool:
        return await probe.unfinished() == 0

    # A second is what is asked of it, and a tenth what it takes; on a machine with far more to do than cores, every hop
    # waits for its turn. What must not be is the twenty seconds until the engine would be done by itself.
    await until(idle, 3, "an engine without a request")


async def has(probe: Probe, count: int) -> bool:
    return await probe.unfinished() == count


# ---- replicas that die -----------------------------------------------------------------------------------------------


async def test_a_killed_engine_replica_is_not_noticed_by_a_stream(service: Cluster, probe: Probe) -> None:
    asked: dict[str, Any] = {
        **HELLO,
        "messages": [{"role": "user", "content": "A long story."}],
        "max_tokens": 300,
        "stream": True,
        "extra_body": {"ignore_eos": True},
    }
    async with openai_client(service) as client:
        undisturbed = await collect(await client.chat.completions.create(**asked))

        async def kill_where_it_runs() -> None:
            busy = [load["replica_id"] for load in await probe.loads() if load["unfinished"]]
            assert len(busy) == 1
            kill([one for one in await service.replicas("engine") if one["replica_id"] == busy[0]])

        disturbed = await collect(
            await client.chat.completions.create(**asked, extra_headers={"x-request-id": "survivor"}),
            after=20,
            then=kill_where_it_runs,
        )
    assert len(undisturbed) == 299  # the token that ends the thoughts is no text
    assert disturbed == undisturbed
    line = await access_line(service, "survivor")
    assert line["migrations"] == 1
    assert len(line["replica"]) == 2
    await until_all_say_hello(service, probe)


async def collect(stream: Any, after: int = 0, then: Callable[[], Any] | None = None) -> str:
    text, chunks = "", 0
    async for chunk in stream:
        for choice in chunk.choices:
            text += (choice.delta.content or "") + (getattr(choice.delta, "reasoning", None) or "")
        chunks += 1
        if then is not None and chunks == after:
            await then()
    return text


async def test_nothing_is_left_running_for_the_clients_of_a_killed_ingress(service: Cluster, probe: Probe) -> None:
    await until_all_say_hello(service, probe)

    async def read_while_it_dies() -> None:
        async with (
            http(service) as client,
            client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as answer,
        ):
            chunks = answer.aiter_bytes()
            await anext(chunks)
            kill(await service.replicas("ingress"))
            async for _ in chunks:
                pass

    with pytest.raises(httpx.HTTPError):
        await read_while_it_dies()
    await until_idle(probe)
    await service.until_replicas("ingress", 2, 60)
    await service.until_answers(service.head, 120)


async def test_what_a_killed_ingress_was_saying_is_taken_up_at_another(service: Cluster, probe: Probe) -> None:
    await until_all_say_hello(service, probe)
    asked = {**HELLO, "max_tokens": 400, "ignore_eos": True, "stream": True}

    async def contents(lines: AsyncIterator[str], until: int = 1_000_000) -> list[str]:
        pieces: list[str] = []
        async for line in lines:
            if line.startswith("data: {"):
                pieces += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
            if sum(map(len, pieces)) >= until:
                break
        return pieces

    async def ask(**headers: str) -> list[str]:
        async with (
            http(service) as client,
            client.stream("POST", "/v1/chat/completions", json=asked, headers=headers) as answer,
        ):
            assert answer.status_code == 200
            return await contents(answer.aiter_lines())

    whole = "".join(await ask())
    async with (
        http(service) as client,
        client.stream("POST", "/v1/chat/completions", json=asked, headers={"x-request-id": "struck"}) as answer,
    ):
        before = "".join(await contents(answer.aiter_lines(), until=100))
        kill(await service.replicas("ingress"))
    assert whole.startswith(before)
    await until_idle(probe)
    await service.until_replicas("ingress", 2, 60)
    await service.until_answers(service.head, 120)
    again = await ask(**{"x-request-id": "again", "x-resume-request-id": "struck"})
    assert "".join(again) == whole
    assert len(max(again, key=len)) >= 90  # what was there came at once
    assert (await access_line(service, "again"))["resumed_tokens"] >= 100


async def test_without_any_engine_health_is_503_and_a_request_waits_for_the_next_one(
    service: Cluster, probe: Probe
) -> None:
    await until_all_say_hello(service, probe)
    async with http(service) as client:
        kill(await service.replicas("engine"))

        async def unhealthy() -> httpx.Response | None:
            answer = await client.get("/health")
            return answer if answer.status_code != 200 else None

        answer = await until(unhealthy, 20, "a bad health")
        assert answer is not None
        assert answer.status_code == 503
        assert "Internal Server Error" not in answer.text  # HAProxy's own page
        waited = await client.post("/v1/chat/completions", json=HELLO, timeout=60)
    assert waited.status_code == 200
    await until_all_say_hello(service, probe)


async def until_all_say_hello(service: Cluster, probe: Probe) -> None:
    async def complete() -> bool:
        return len(await probe.loads()) == len(await service.replicas("engine")) == 2

    await until(complete, 60, "two engine replicas again")


# ---- what is seen from outside ---------------------------------------------------------------------------------------


async def test_every_request_leaves_one_line(service: Cluster) -> None:
    async with http(service) as client:
        answer = await client.post("/v1/chat/completions", json=HELLO, headers={"x-request-id": "logged-1"})
    usage = answer.json()["usage"]
    line = await access_line(service, "logged-1")
    assert line["route"] == "/v1/chat/completions"
    assert line["model"] == MODEL
    assert (line["status"], line["outcome"]) == (200, "ok")
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["output_tokens"] == usage["completion_tokens"]
    assert 0 <= line["first_token_s"] <= line["total_s"]
    assert sum(line["phases"].values()) == pytest.approx(line["total_s"], abs=0.002)
    assert len(line["replica"]) == 1
    assert "hello" not in json.dumps(line)


async def test_explain_finds_a_request_whichever_ingress_had_it(service: Cluster) -> None:
    asked = [f"explained-{number}" for number in range(6)]
    async with http(service) as client:
        for request_id in asked:
            headers = {"x-request-id": request_id, "connection": "close"}
            await client.post("/v1/chat/completions", json=HELLO, headers=headers)
        by_ingress = set()
        for request_id in asked:
            (one,) = (await client.get(f"/status/requests/{request_id}")).json()["requests"]
            by_ingress.add(one["record"]["ingress_id"])
            assert sum(seconds for _, seconds in one["record"]["phases"]) == pytest.approx(one["record"]["total_s"])
    assert len(by_ingress) == INGRESSES, "both were asked"
    command = [sys.executable, "-m", "serve_app", "explain", asked[0], "--url", service.url()]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    text = (await process.communicate())[0].decode()
    assert process.returncode == 0
    assert f"{asked[0]}: /v1/chat/completions, ok (200)" in text
    assert " of " in text.splitlines()[-1]


async def access_line(service: Cluster, request_id: str) -> dict[str, Any]:
    async def written() -> list[str]:
        return await asyncio.to_thread(service.logged, f'"id":"{request_id}"')

    lines = await until(written, 10, f"an access line of {request_id}")
    assert len(lines) == 1
    found: dict[str, Any] = json.loads(lines[0][lines[0].index("{") :])
    return found


async def test_ray_exports_our_metrics_with_the_replica_they_come_from(service: Cluster) -> None:
    async with http(service) as client:
        await client.post("/v1/chat/completions", json=HELLO)

        async def exported() -> list[str]:
            text = (await client.get(service.metrics_url)).text
            return [line for line in text.splitlines() if re.match(r"ray_step_requests(_total)?\{", line)]

        async def event_loops() -> list[str]:
            text = (await client.get(service.metrics_url)).text
            lines = [line for line in text.splitlines() if line.startswith("ray_step_event_loop_")]
            return lines if len(lines) == 2 * INGRESSES else []

        lines = await until(exported, 20, "ray_step_requests at Ray's metrics endpoint")
        gauges = await until(event_loops, 30, "the gauges of both event loops")
    assert all(float(line.rsplit(" ", 1)[1]) > 0 for line in gauges if "busy_ratio" in line)
    ok = [line for line in lines if 'outcome="ok"' in line and 'route="/v1/chat/completions"' in line]
    assert ok
    for label in ('deployment="ingress"', 'application="step"', 'replica="'):
        assert label in ok[0]
