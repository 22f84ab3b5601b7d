"""A replica that is starting says what it does on the status page, and how long each phase took once it is up."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.ray.cluster import Cluster, Node, fake_engine, kill, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

START_S = 12.0
"""Longer than a view of Serve's controller is kept."""

ARGS = {
    "profile": "cpu-demo",
    "engine": {"kind": "fake", "fake": fake_engine(start_s=START_S)},
    "replicas": {"min": 1, "max": 1, "cpus_per_replica": 1},
    "ingress": {"max_replicas": 1, "cpus_per_replica": 1},
}


async def test_a_starting_replica_says_its_phase() -> None:
    with Cluster(Node()) as cluster:
        cluster.start_head("--num-cpus=4")
        cluster.serve(ARGS, cluster.own_ports)
        await cluster.until_answers(cluster.head, 300)
        old = await cluster.until_replicas("engine", 1, 180)
        async with httpx.AsyncClient(base_url=cluster.url(), trust_env=False, timeout=30) as client:

            async def replica(*, takes_work: bool) -> dict[str, Any] | None:
                """Another one than the old, which says something of its start."""
                for one in (await client.get("/status/fleet")).json()["replicas"]:
                    says = one["start_phases"] or one["under_way"]
                    if one["replica_id"] != old[0]["replica_id"] and one["takes_work"] == takes_work and says:
                        return dict(one)
                return None

            kill(old)
            starting = await until(lambda: replica(takes_work=False), 120, "a replica that says what it does")
            assert starting is not None
            assert (starting["state"], starting["under_way"]) == ("starting", "pretending to load weights")
            up = await until(lambda: replica(takes_work=True), 120, "it is up")
            assert up is not None and up["replica_id"] == starting["replica_id"]
            assert set(up["start_phases"]) == {"process", "weights"}
            assert up["start_phases"]["weights"] >= START_S
