"""Engines follow the objective in a live Serve: a burst starts them, its end stops them, and both are explained."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.ray.cluster import Cluster, Node, fake_engine, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

CLIENTS = 18
PROMPT = " ".join(f"word{number}" for number in range(250))

ARGS = {
    "profile": "cpu-demo",
    "engine": {
        "kind": "fake",
        "fake": fake_engine(max_num_seqs=16, prefill_tokens_per_s=1500, start_s=1, answer_tokens=[2, 4]),
    },
    "slo": {"ttft_p95_s": 0.8},
    "replicas": {"min": 1, "max": 3, "cpus_per_replica": 1, "upscale_delay_s": 2, "downscale_delay_s": 8},
    "ingress": {"min_replicas": 1, "max_replicas": 1, "cpus_per_replica": 1},
}


@pytest.fixture(scope="module")
def scaled() -> Iterator[Cluster]:
    """A service whose engines follow an objective."""
    with Cluster(Node(), {"RAY_metrics_report_interval_ms": "1000"}) as cluster:
        cluster.start_head("--num-cpus=6")
        cluster.serve(ARGS, cluster.own_ports)
        asyncio.run(_up(cluster))
        yield cluster


async def _up(cluster: Cluster) -> None:
    await cluster.until_replicas("engine", 1, 180)
    await cluster.until_answers(cluster.head, 60)


@contextlib.asynccontextmanager
async def burst(service: Cluster) -> AsyncIterator[None]:
    """So many clients, each of which asks again as soon as it has its answer."""

    async def ask_again(client: httpx.AsyncClient, number: int) -> None:
        body = {"messages": [{"role": "user", "content": f"{number} {PROMPT}"}], "max_tokens": 8, "model": "any"}
        while True:
            answer = await client.post(f"{service.url()}/v1/chat/completions", json={**body, "model": "step3p7-flash"})
            assert answer.status_code == 200, answer.text

    async with httpx.AsyncClient(timeout=60, trust_env=False) as client, asyncio.TaskGroup() as clients:
        tasks = [clients.create_task(ask_again(client, number)) for number in range(CLIENTS)]
        yield
        for task in tasks:
            task.cancel()


async def scale_decisions(service: Cluster) -> list[dict[str, Any]]:
    """What the status page has of the engines' number, the oldest first."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        fleet = (await client.get(f"{service.url()}/status/fleet")).json()
    return [one for one in reversed(fleet["scale"]) if one["deployment"] == "engine"]


async def metric(service: Cluster, start: str) -> list[str]:
    """The lines of Ray's metrics that begin so."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        lines = (await client.get(service.metrics_url)).text.splitlines()
    return [line for line in lines if line.startswith(start)]


async def test_a_burst_starts_engines_and_its_end_stops_them_each_with_the_reason(scaled: Cluster) -> None:
    async with burst(scaled):
        await scaled.until_replicas("engine", 3, 180)

        async def said() -> list[dict[str, Any]]:
            found = await scale_decisions(scaled)
            return found if found and found[-1]["after"] == 3 else []

        decisions = await until(said, 30, "the reasons on the status page")
    assert decisions[0]["before"] == 1
    assert all("TTFT p95 forecast" in one["reason"] for one in decisions)
    assert decisions[0]["reason"].startswith(f"scaled 1 -> {decisions[0]['after']}: ")
    ups = "ray_step_scaling_decisions_total{"

    async def counted() -> list[str]:
        return [line for line in await metric(scaled, ups) if 'direction="up"' in line and not line.endswith(" 0.0")]

    assert await until(counted, 30, "a counted decision")
    logs = (scaled.folder / "session_latest" / "logs" / "serve").glob("controller_*.log")
    assert any(decisions[0]["reason"] in file.read_text(encoding="utf-8") for file in logs)

    await scaled.until_replicas("engine", 1, 240)

    async def back() -> str:
        found = await scale_decisions(scaled)
        return str(found[-1]["reason"]) if found and found[-1]["after"] == 1 else ""

    assert "would have been enough for" in await until(back, 30, "the reason of the end")
    assert [one["before"] for one in (await scale_decisions(scaled))[1:]] == [
        one["after"] for one in (await scale_decisions(scaled))[:-1]
    ]
