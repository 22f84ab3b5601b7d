"""The head dies and comes back, with its state in a Redis: the service goes on, and Serve takes it back as it is.

The head is a node of its own that runs nothing of the application, as docs/operations.md asks for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from tests.ray import redis
from tests.ray.cluster import Cluster, Node, fake_engine, free_ports, kill, until
from tests.ray.nodes import Network, not_here

pytestmark = [pytest.mark.ray, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]

TOKENS = 500
"""Of a stream: its end comes after the new head."""
ARGS = {
    "profile": "cpu-demo",
    "engine": {"kind": "fake", "fake": fake_engine(max_num_seqs=16, gap_s=0.05)},
    "replicas": {"min": 2, "max": 2, "cpus_per_replica": 0.5, "resources": {"slot": 1}},
    "ingress": {"min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 1},
}
CHAT = {"model": "step3p7-flash", "messages": [{"role": "user", "content": "Tell me."}]}
NOTICED_SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_initial_delay_ms": "2000"}
HEAD_OPTIONS = ("--num-cpus=0",)


@dataclass
class Site:
    """The cluster, its two worker nodes, and its replicas as Serve first told of them, by deployment."""

    network: Network
    cluster: Cluster
    workers: list[Node]
    replicas: Mapping[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if redis.SERVER is None:
        pytest.skip("redis-server is not installed")
    if reason := not_here():
        pytest.skip(reason)
    with Network() as network, redis.running(network.gateway, *free_ports(1)) as address:
        head = network.add_node()
        with Cluster(head, {**NOTICED_SOON, "RAY_REDIS_ADDRESS": address}) as cluster:
            cluster.start_head(*HEAD_OPTIONS)
            workers = [network.add_node() for _ in range(2)]
            for node in workers:
                cluster.add_node(node, "--num-cpus=2", '--resources={"slot": 1}')
            cluster.serve(ARGS, {})
            yield Site(network, cluster, workers, asyncio.run(until_up(cluster, workers)))


async def until_up(cluster: Cluster, workers: list[Node]) -> dict[str, list[dict[str, Any]]]:
    replicas = {name: await cluster.until_replicas(name, 2, 180) for name in ("engine", "ingress")}
    for node in workers:
        await cluster.until_answers(node, 60)
    return replicas


class Stream:
    """A streamed chat, read by a task of its own."""

    def __init__(self, url: str) -> None:
        self.pieces: list[str] = []
        self.begun = asyncio.Event()
        self._task = asyncio.create_task(self._read(url))

    async def text(self) -> str:
        """All of it. Raises what broke it."""
        await self._task
        return "".join(self.pieces)

    async def _read(self, url: str) -> None:
        body = {**CHAT, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        async with (
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    assert "error" not in chunk, chunk
                    for choice in chunk["choices"]:
                        self.pieces.append(
                            (choice["delta"].get("reasoning") or "") + (choice["delta"].get("content") or "")
                        )
                    self.begun.set()


async def ask(url: str) -> int:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        return (await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 10})).status_code


def ids(replicas: Mapping[str, list[dict[str, Any]]]) -> set[tuple[str, int]]:
    return {(one["replica_id"], one["pid"]) for found in replicas.values() for one in found}


async def test_no_client_notices_that_the_head_dies_and_no_replica_is_replaced(site: Site) -> None:
    urls = [site.cluster.url(node) for node in site.workers]
    streams = [Stream(url) for url in urls for _ in range(2)]
    for stream in streams:
        await stream.begun.wait()

    site.network.pull_the_plug(site.cluster.head)
    without_head = [await ask(url) for url in urls for _ in range(3)]
    await asyncio.to_thread(site.cluster.start_head, *HEAD_OPTIONS)

    async def taken_back() -> dict[str, list[dict[str, Any]]]:
        listed = await site.cluster.deployments()
        found = {name: [one for one in listed.get(name, []) if one["state"] == "RUNNING"] for name in site.replicas}
        return found if all(len(one) == 2 for one in found.values()) else {}

    found = await until(taken_back, 120, "a controller that knows the replicas")
    assert without_head == [200] * 6
    assert ids(found) == ids(site.replicas)
    texts = {await stream.text() for stream in streams}
    assert {len(text) for text in texts} == {TOKENS - 1}  # a letter each, but for the token that ends the thoughts
    assert len(texts) == 1


async def test_the_new_controller_replaces_an_engine_that_dies(site: Site) -> None:
    (dead, other) = site.replicas["engine"]
    kill([dead])

    async def replaced() -> bool:
        found = {one["replica_id"] for one in await site.cluster.replicas("engine")}
        return len(found) == 2 and dead["replica_id"] not in found and other["replica_id"] in found

    answers = [await ask(site.cluster.url(node)) for node in site.workers]
    await until(replaced, 120, "another engine in its place")
    assert answers == [200, 200]
    assert psutil.pid_exists(other["pid"])
