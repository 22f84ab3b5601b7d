"""The status page's JSON, from a client's chair: what it says of the fleet, and whom it tells what."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from serve_app.engine.fake import Fault, FaultKind
from serve_app.ingress.page_routes import FILES
from tests.http.harness import NamedKeys, chat, client_of, fake_engine, service

pytestmark = pytest.mark.asyncio

NASTY = '"><img src=x onerror=alert(1)>'


async def fleet(client: httpx.AsyncClient, **headers: str) -> dict[str, Any]:
    answer = await client.get("/status/fleet", headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def listed(client: httpx.AsyncClient, state: str, under_way: str = "") -> dict[str, Any]:
    """The only replica, once the listing, which is a second old, says so."""
    async with asyncio.timeout(60):
        while True:
            (replica,) = (await fleet(client))["replicas"]
            if replica["state"] == state and replica["under_way"].startswith(under_way):
                return dict(replica)
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.1)


async def test_a_working_replica_says_what_it_does() -> None:
    async with service({"a": fake_engine(gap_s=0.1, tokens_per_step=2)}) as running, client_of(running) as client:
        assert (await listed(client, "idle"))["slots"] == 16
        asked = chat(max_tokens=7000, stream=True, ignore_eos=True)
        async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
            lines = response.aiter_lines()  # held: the end of the iterator would close the stream
            await anext(lines)
            replica = await listed(client, "working", "1 requests, longest context")
            assert replica["unfinished"] == 1 and replica["tokens_per_step"] == pytest.approx(2.0)
            assert replica["takes_work"] and replica["own_requests"] == 1 and replica["slots"] == 16
            assert replica["kv_usage_ratio"] > 0
            assert (await fleet(client))["in_flight"] == 1


async def test_keys_are_summed_and_the_slowest_are_explained() -> None:
    async with service({"a": fake_engine(gap_s=0.005)}) as running, client_of(running) as client:
        headers = {"x-request-id": NASTY, "x-session-id": NASTY}
        for tokens in (5, 20):
            asked = chat(max_tokens=tokens, ignore_eos=True)
            usage = (await client.post("/v1/chat/completions", json=asked, headers=headers)).json()["usage"]
        found = await fleet(client)
        (used,) = found["keys"]
        assert (used["key"], used["requests"], used["output_tokens"]) == (None, 2, 25)
        assert used["prompt_tokens"] == 2 * usage["prompt_tokens"]
        chats = [one for one in found["slowest"] if one["record"]["route"].startswith("/v1")]
        assert sorted(one["record"]["output_tokens"] for one in chats) == [5, 20]
        totals = [one["record"]["total_s"] for one in chats]
        assert totals == sorted(totals, reverse=True)
        assert all(one["record"]["request_id"] == NASTY and " of " in one["sentence"] for one in chats)


async def test_a_migration_is_listed_with_its_cause() -> None:
    slow = fake_engine(gap_s=0.001, faults=(Fault(FaultKind.HANG, at_token=5, every=1),))
    async with service({"a": slow, "b": slow}, hang_after_s=1.0) as running, client_of(running) as client:
        await client.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "moved-1"})
        found = await fleet(client)
        (moved,) = found["migrations"]
        assert (moved["request_id"], moved["cause"]) == ("moved-1", "died")
        assert {moved["from_replica"], moved["to_replica"]} == {"a", "b"}


async def test_a_key_sees_its_own_and_an_operator_sees_all() -> None:
    async with (
        service({"a": fake_engine()}, keys=NamedKeys(), operators=("alice",)) as running,
        client_of(running) as client,
    ):
        for key in ("alice", "bob"):
            assert (await client.post("/v1/chat/completions", json=chat(), headers={"x-api-key": key})).is_success
        assert (await client.get("/status/fleet")).status_code == 401
        of_bob = await fleet(client, authorization="Bearer bob")
        assert of_bob["only_key"] and [one["key"] for one in of_bob["keys"]] == ["bob"]
        assert {one["record"]["key"] for one in of_bob["slowest"]} == {"bob"}
        assert of_bob["replicas"], "the fleet is for everybody"
        of_alice = await fleet(client, authorization="Bearer alice")
        assert {one["key"] for one in of_alice["keys"]} == {"alice", "bob"} and not of_alice["only_key"]


async def test_the_page_needs_no_key_and_runs_no_script_of_others() -> None:
    async with service({"a": fake_engine()}, keys=NamedKeys()) as running, client_of(running) as client:
        page = await client.get("/status")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert "http://" not in page.text and "https://" not in page.text and " style=" not in page.text
        for name, kind in FILES.items():
            file = await client.get(f"/status/page/{name}")
            assert file.status_code == 200 and file.headers["content-type"] == kind
            assert "innerHTML" not in file.text and "insertAdjacentHTML" not in file.text
            assert f"/status/page/{name}" in page.text or name == "playground.js"
        assert (await client.get("/status/page/nothing.js")).status_code == 404
        assert (await client.get("/status/")).status_code == 200
        assert (await client.head("/status")).content == b""


async def test_it_can_be_switched_off() -> None:
    async with service({"a": fake_engine()}, status_page=False) as running, client_of(running) as client:
        for path in ("/status", "/status/fleet", "/status/page/status.js"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/status/requests")).status_code == 200
