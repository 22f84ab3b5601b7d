"""Where a request's time went, from a client's chair: each kind of slow request is explained by its true cause."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest
from starlette.types import Message

from serve_app.engine.fake import Fault, FaultKind
from serve_app.observability.phases import Phase
from tests.http.harness import NAME, NamedKeys, chat, client_of, fake_engine, service

pytestmark = pytest.mark.asyncio

LONG = "word " * 1500


async def explained(client: httpx.AsyncClient, request_id: str) -> tuple[str, dict[str, float], dict[str, object]]:
    """Its sentence, its phases, and its record."""
    answer = await client.get(f"/status/requests/{request_id}")
    assert answer.status_code == 200, answer.text
    (one,) = answer.json()["requests"]
    record = one["record"]
    sums: dict[str, float] = {}
    for phase, seconds in record["phases"]:
        sums[phase] = sums.get(phase, 0.0) + seconds
    assert sum(sums.values()) == pytest.approx(record["total_s"], abs=1e-6)
    return one["sentence"], sums, record


async def test_a_long_prefill_is_explained() -> None:
    async with service({"a": fake_engine(prefill_tokens_per_s=1000.0)}) as running, client_of(running) as client:
        response = await client.post("/v1/chat/completions", json=chat(LONG), headers={"x-request-id": "prefill-1"})
        prompt_tokens = response.json()["usage"]["prompt_tokens"]
        sentence, phases, record = await explained(client, "prefill-1")
        assert max(phases, key=phases.__getitem__) == "prefill"
        assert f"prefill of {prompt_tokens:,} tokens" in sentence
        assert record["prompt_tokens"] == prompt_tokens


async def test_a_full_queue_is_explained() -> None:
    async with service({"a": fake_engine(max_num_seqs=1, gap_s=0.05)}) as running, client_of(running) as client:
        asked = [
            client.post("/v1/chat/completions", json=chat(str(number)), headers={"x-request-id": f"queue-{number}"})
            for number in range(4)
        ]
        await asyncio.gather(*asked)
        found = [await explained(client, f"queue-{number}") for number in range(4)]
        sentence, phases, _ = max(found, key=lambda one: one[1].get("replica_queue", 0.0))
        assert phases["replica_queue"] > 0.5
        assert "it waited at replica a to be started" in sentence


async def test_a_migration_is_explained() -> None:
    slow = fake_engine(gap_s=0.001, faults=(Fault(FaultKind.HANG, at_token=5, every=1),))
    engines = {"a": slow, "b": slow}
    async with service(engines, hang_after_s=2.0) as running, client_of(running) as client:
        await client.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "moved-1"})
        sentence, phases, record = await explained(client, "moved-1")
        assert max(phases, key=phases.__getitem__) == "migration"
        assert re.search(r"it moved once, at last to replica [ab]: replica [ab] died", sentence)
        assert [one["end"] for one in record["attempts"]] == ["died", "finished"]  # type: ignore[index, attr-defined]


async def test_a_slow_client_is_explained() -> None:
    """It takes the first chunk and then nothing until the engine has long finished."""
    async with service({"a": fake_engine(answer_tokens=(200, 200))}) as running, client_of(running) as client:
        loop = asyncio.get_running_loop()
        body = json.dumps(chat(max_tokens=200, stream=True)).encode()
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if asked:
                return asked.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body" and running.client.dispatcher.in_flight:
                async with asyncio.timeout(30):
                    while running.client.dispatcher.in_flight:  # noqa: ASYNC110  # the engine's end is no event here
                        await asyncio.sleep(0)
                await asyncio.wait({loop.create_future()}, timeout=1.0)

        headers = [(b"x-request-id", b"slow-client-1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        rest = {"query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http", "server": ("x", 80)}
        await running.middleware({**scope, **rest, "client": ("127.0.0.1", 1)}, receive, send)
        _, phases, _ = await explained(client, "slow-client-1")
        assert phases["delivery"] > 0.9


async def test_neighbours_prefill_is_explained() -> None:
    config = fake_engine(gap_s=0.01, prefill_tokens_per_s=4000.0, max_num_batched_tokens=512, max_model_len=16_384)
    async with service({"a": config}) as running, client_of(running) as client:
        asked = chat(max_tokens=150, stream=True, ignore_eos=True)
        headers = {"x-request-id": "stalled-1"}
        async with client.stream("POST", "/v1/chat/completions", json=asked, headers=headers) as response:
            lines = response.aiter_lines()
            for _ in range(30):
                await anext(lines)
            await client.post("/v1/chat/completions", json=chat(LONG, max_tokens=1))
            async for _ in lines:
                pass
        _, phases, _ = await explained(client, "stalled-1")
        assert phases["neighbour_prefill"] > 0.1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_client_may_ask_for_its_timing(path: str) -> None:
    asked = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    async with service({"a": fake_engine(gap_s=0.005)}) as running, client_of(running) as client:
        plain = await client.post(path, json=asked)
        assert "server-timing" not in plain.headers
        debug = {"x-step-debug": "timing"}
        answer = await client.post(path, json=asked, headers=debug)
        timing = parsed(answer.headers["server-timing"])
        assert {"render", "decode", "total"} <= set(timing)
        assert sum(timing.values()) == pytest.approx(2 * timing["total"], abs=1.0)
        assert ": server-timing" not in (await client.post(path, json={**asked, "stream": True})).text
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        streamed = (await client.post(path, json={**asked, "stream": True}, headers=debug)).text
        measured_ms = (loop.time() - begun_s) * 1000
        last = streamed.rstrip("\n").splitlines()[-1]
        assert last.startswith(": server-timing ")
        assert parsed(last.removeprefix(": server-timing "))["total"] <= measured_ms
        events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        assert events  # the comment is no event, and stands after the last


def parsed(timing: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+);dur=([0-9.]+)", timing)}


async def test_a_key_sees_its_own_requests_and_an_operator_sees_all() -> None:
    async with (
        service({"a": fake_engine()}, keys=NamedKeys(), operators=("alice",)) as running,
        client_of(running) as client,
    ):
        for key in ("alice", "bob"):
            headers = {"authorization": f"Bearer {key}", "x-request-id": f"of-{key}"}
            assert (await client.post("/v1/chat/completions", json=chat(), headers=headers)).status_code == 200
        alice, bob = ({"x-api-key": key} for key in ("alice", "bob"))
        assert (await client.get("/status/requests")).status_code == 401
        assert ids(await client.get("/status/requests", headers=bob)) == {"of-bob"}
        assert ids(await client.get("/status/requests?key=alice", headers=bob)) == {"of-bob"}
        assert {"of-alice", "of-bob"} <= ids(await client.get("/status/requests", headers=alice))
        assert ids(await client.get("/status/requests?key=bob", headers=alice)) == {"of-bob"}
        assert (await client.get("/status/requests/of-alice", headers=bob)).status_code == 404
        assert (await client.get("/status/requests/of-bob", headers=alice)).status_code == 200


def ids(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 200, answer.text
    return {
        one["record"]["request_id"] for one in answer.json()["requests"] if one["record"]["route"].startswith("/v1")
    }


async def test_the_slowest_come_first_and_an_unknown_one_is_a_404() -> None:
    async with service({"a": fake_engine(gap_s=0.05)}) as running, client_of(running) as client:
        await client.post("/v1/chat/completions", json=chat(max_tokens=1))  # the first one loads what all need
        for number, tokens in enumerate((2, 60, 20)):
            asked = chat(max_tokens=tokens, ignore_eos=True)
            await client.post("/v1/chat/completions", json=asked, headers={"x-request-id": f"n-{number}"})
        answer = (await client.get("/status/requests?slowest=2")).json()["requests"]
        assert [one["record"]["request_id"] for one in answer] == ["n-1", "n-2"]
        unknown = await client.get("/status/requests/none")
        assert unknown.status_code == 404
        assert "No request with the id `none` is known" in unknown.json()["error"]["message"]
        assert (await client.get("/status/requests?slowest=x")).status_code == 400
        assert all(phase in set(Phase) for one in answer for phase, _ in one["record"]["phases"])
