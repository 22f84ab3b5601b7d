"""Several nodes: a head and workers with room for one engine each, every one with an address of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.ray.cluster import Cluster, Node, fake_engine, until
from tests.ray.nodes import Network, not_here

pytestmark = [pytest.mark.ray, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]

WORKER = ("--num-cpus=1", "--num-gpus=1", '--resources={"slot": 1, "rack": 1}')
SLOTS = 2
TOKENS = 300
ARGS = {
    "profile": "cpu-demo",
    "engine": {"kind": "fake", "fake": fake_engine(max_num_seqs=SLOTS, gap_s=0.02)},
    "replicas": {
        "min": 1,
        "max": 2,
        "cpus_per_replica": 0.5,
        "resources": {"slot": 1},
        "upscale_delay_s": 1,
        "downscale_delay_s": 3,
        "drain_timeout_s": 5,
    },
    # Two links to every engine, more than `target_load` of its slots: they alone must not keep two engines. The workers
    # have no room for an ingress: a client's own connection does not end with a node.
    "ingress": {"min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 2},
}
CHAT = {"model": "step3p7-flash", "messages": [{"role": "user", "content": "Tell me."}]}

LIVES_ON = {
    # A dead node is missed after five seconds, and not after half a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_initial_delay_ms": "2000",
}


@dataclass
class Site:
    """The cluster, and its worker nodes by address."""

    network: Network
    cluster: Cluster
    workers: dict[str, Node]

    def add_worker(self) -> Node:
        node = self.network.add_node()
        self.cluster.add_node(node, *WORKER)
        self.workers[node.address] = node
        return node

    def cut(self, address: str) -> None:
        self.network.pull_the_plug(self.workers.pop(address))

    @property
    def nodes(self) -> list[Node]:
        return [self.cluster.head, *self.workers.values()]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if reason := not_here():
        pytest.skip(reason)
    with Network() as network, Cluster(network.add_node(), LIVES_ON) as cluster:
        cluster.start_head("--num-cpus=4")
        found = Site(network, cluster, {})
        for _ in range(2):
            found.add_worker()
        # By default a replica of a deleted application is kept for half a minute.
        cluster.serve(ARGS, {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"})
        asyncio.run(until_up(cluster))
        yield found


async def until_up(cluster: Cluster) -> None:
    await cluster.until_replicas("engine", 1, 180)
    await cluster.until_replicas("ingress", 2, 180)
    await cluster.until_answers(cluster.head, 60)


@asynccontextmanager
async def load(cluster: Cluster, requests: int) -> AsyncIterator[None]:
    """So many endless requests at a time, for as long as the block lasts."""
    async with httpx.AsyncClient(base_url=cluster.url(), trust_env=False, timeout=120) as client:

        async def ask(number: int) -> None:
            body = {"model": CHAT["model"], "prompt": f"{number}: on and on", "max_tokens": 4000, "ignore_eos": True}
            await client.post("/v1/completions", json=body)

        tasks = [asyncio.create_task(ask(number)) for number in range(requests)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_gang_of_two_nodes_is_placed_on_two_nodes(site: Site) -> None:
    config = {
        "profile": "cpu-demo",
        "engine": {"kind": "fake"},
        "replicas": {"gpus_per_replica": 2, "nodes_per_replica": 2, "cpus_per_replica": 1, "resources": {"rack": 1}},
    }
    script = str(Path(__file__).with_name("gang.py"))
    process = site.cluster.popen(site.cluster.head, sys.executable, script, site.cluster.address, json.dumps(config))
    out, _ = await asyncio.to_thread(process.communicate, timeout=120)
    assert process.returncode == 0, (site.cluster.folder / "gang.log").read_text(encoding="utf-8")[-3000:]
    found = json.loads(out.splitlines()[-1])
    assert (found["state"], found["strategy"]) == ("CREATED", "STRICT_SPREAD")
    assert sorted(found["nodes"]) == sorted(site.workers)
    assert found["bundles"] == [{"CPU": 0.5, "GPU": 1.0, "rack": 1.0}] * 2


async def test_the_fleet_grows_over_the_nodes_under_load_and_shrinks_again(site: Site) -> None:
    (alone,) = await site.cluster.until_replicas("engine", 1, 30)
    async with load(site.cluster, 2 * SLOTS):
        replicas = await site.cluster.until_replicas("engine", 2, 150)
        assert {one["node_ip"] for one in replicas} == set(site.workers)
        for node in site.nodes:
            await site.cluster.until_answers(node, 120)
    (left,) = await site.cluster.until_replicas("engine", 1, 150)
    assert alone["node_ip"] in site.workers
    (gone,) = {one["replica_id"] for one in replicas} - {left["replica_id"]}
    assert [one for one in site.cluster.controller_logged("scale-in: stops ") if gone in one], "Serve chose by itself"


async def test_a_node_that_is_about_to_go_is_left_and_one_that_comes_back_is_used(site: Site) -> None:
    (replica,) = await site.cluster.until_replicas("engine", 1, 150)
    going = site.workers[replica["node_ip"]]
    undisturbed = await whole(site.cluster.url())
    streaming = asyncio.create_task(whole(site.cluster.url()))
    # By id: the nodes of this test share a process table, and Ray would take any of them for the command's own.
    named = ("--address", site.cluster.address, "--node-id", replica["node_id"])
    leave = site.cluster.popen(going, sys.executable, "-m", "serve_app", "leave", *named, "--deadline-s", "60")
    ended = asyncio.create_task(asyncio.to_thread(leave.communicate))
    while not ended.done():
        assert (await chat(site.cluster.url())).status_code == 200
    printed, _ = await ended
    assert (leave.returncode, "is not drained" in printed) == (0, False), printed
    assert await streaming == undisturbed
    (moved,) = await site.cluster.until_replicas("engine", 1, 150)
    assert moved["node_ip"] in site.workers.keys() - {going.address}
    site.network.pull_the_plug(going)
    site.cluster.add_node(going, *WORKER)
    async with load(site.cluster, 2 * SLOTS):
        replicas = await site.cluster.until_replicas("engine", 2, 150)
    assert {one["node_ip"] for one in replicas} == set(site.workers)
    await site.cluster.until_replicas("engine", 1, 150)


async def whole(url: str) -> str:
    """The same in one piece."""
    return "".join([piece async for piece in pieces(url)])


async def test_what_ran_on_a_killed_node_goes_on_elsewhere(site: Site) -> None:
    (replica,) = await site.cluster.until_replicas("engine", 1, 150)
    undisturbed = "".join([piece async for piece in pieces(site.cluster.url())])
    disturbed, cut = "", False
    async for piece in pieces(site.cluster.url()):
        disturbed += piece
        if len(disturbed) > 20 and not cut:
            site.cut(replica["node_ip"])
            cut = True
    assert len(undisturbed) == TOKENS - 1  # a letter each, but for the token that ends the thoughts
    assert disturbed == undisturbed
    (moved,) = await site.cluster.until_replicas("engine", 1, 150)
    assert moved["node_ip"] in site.workers
    for node in site.nodes:
        await site.cluster.until_answers(node, 120)


async def pieces(url: str) -> AsyncIterator[str]:
    """What a streamed chat thinks and says."""
    body = {**CHAT, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                for choice in chunk["choices"]:
                    yield (choice["delta"].get("reasoning") or "") + (choice["delta"].get("content") or "")


async def test_without_a_node_for_it_a_replica_waits_for_one(site: Site) -> None:
    (address,) = site.workers
    site.cut(address)

    async def none_runs() -> bool:
        states = {one["state"] for one in await site.cluster.all_replicas("engine")}
        return "RUNNING" not in states

    await until(none_runs, 90, "an engine deployment without a replica")
    asking = asyncio.create_task(chat(site.cluster.url()))
    node = await asyncio.to_thread(site.add_worker)
    (replica,) = await site.cluster.until_replicas("engine", 1, 150)
    assert replica["node_ip"] == node.address
    assert (await asking).status_code == 200


async def chat(url: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as client:
        return await client.post("/v1/chat/completions", json=CHAT)
