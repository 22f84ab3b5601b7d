"""A fleet that may have no engine, on a Serve of its own: it goes to zero, and a request brings it back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.ray.cluster import Cluster, Node, fake_engine, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]  # the first test starts the service

START_S = 3.0
ARGS = {
    "profile": "cpu-demo",
    "engine": {"kind": "fake", "fake": fake_engine(start_s=START_S)},
    "replicas": {"min": 0, "max": 1, "cpus_per_replica": 1, "idle_to_zero_s": 3},
    "ingress": {"min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 1, "keep_alive_s": 1},
}
CHAT: dict[str, Any] = {"model": "step3p7-flash", "messages": [{"role": "user", "content": "hello"}]}
MESSAGE = {**CHAT, "max_tokens": 500}


@pytest.fixture(scope="module")
def sleeper() -> Iterator[Cluster]:
    with Cluster(Node()) as cluster:
        cluster.start_head("--num-cpus=4")
        cluster.serve(ARGS, cluster.own_ports)
        asyncio.run(_until_up(cluster))
        yield cluster


async def _until_up(cluster: Cluster) -> None:
    await cluster.until_replicas("ingress", 2, 300)
    await cluster.until_answers(cluster.head, 60)


def client_of(cluster: Cluster) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=cluster.url(), trust_env=False, timeout=120)


async def state(client: httpx.AsyncClient) -> str:
    answer: dict[str, Any] = (await client.get("/status/fleet")).json()
    return str(answer["state"])


async def until_asleep(cluster: Cluster, client: httpx.AsyncClient) -> None:
    async def asleep() -> bool:
        return not await cluster.all_replicas("engine") and await state(client) == "asleep"

    await until(asleep, 120, "a fleet without an engine")


async def test_it_goes_to_zero_and_every_request_brings_it_back(sleeper: Cluster) -> None:
    async with client_of(sleeper) as client:
        await until_asleep(sleeper, client)
        # A load balancer must go on sending requests, and clients look at the models first.
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models")).json()["data"]
        assert "asleep" in (await client.get("/")).json()["engines"]

        stream = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        others = [client.post("/v1/chat/completions", json=CHAT), client.post("/v1/messages", json=MESSAGE)]
        streamed, *answers = await asyncio.gather(stream, *others)
        assert [one.status_code for one in (streamed, *answers)] == [200, 200, 200]
        assert streamed.text.startswith(": keep-alive, starting: an engine should be up ")
        assert streamed.text.rstrip().endswith("data: [DONE]")
        assert await state(client) == "up"
        await until_asleep(sleeper, client)


async def test_a_client_that_leaves_holds_no_engine(sleeper: Cluster) -> None:
    async with client_of(sleeper) as client:
        await until_asleep(sleeper, client)
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=CHAT, timeout=START_S / 3)
        await until_asleep(sleeper, client)
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
