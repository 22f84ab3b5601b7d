"""One Ray Serve instance for all tests of this folder that need one: two ingress replicas over two fake engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.ray.cluster import Cluster, Node, Probe, fake_engine

SLOTS, MAX_QUEUED_REQUESTS = 16, 48
"""Of both engines together, whichever ingress the requests come by."""
INGRESSES = 2

ARGS = {
    "profile": "cpu-demo",
    "engine": {"kind": "fake", "fake": fake_engine(max_num_seqs=SLOTS // 2)},
    "replicas": {"min": 2, "max": 2, "cpus_per_replica": 1, "max_queued_requests": MAX_QUEUED_REQUESTS // 2},
    "ingress": {
        "min_replicas": INGRESSES,
        "max_replicas": INGRESSES,
        "cpus_per_replica": 1,
        "max_body_bytes": 100_000,
    },
}


@pytest.fixture(scope="session")
def service() -> Iterator[Cluster]:
    """The running service."""
    with Cluster(Node(), {"RAY_metrics_report_interval_ms": "1000"}) as cluster:
        cluster.start_head("--num-cpus=8")
        cluster.serve(ARGS, cluster.own_ports)
        asyncio.run(_until_up(cluster))
        yield cluster


async def _until_up(cluster: Cluster) -> None:
    await cluster.until_replicas("engine", 2, 180)
    await cluster.until_replicas("ingress", INGRESSES, 180)
    await cluster.until_answers(cluster.head, 60)


@pytest.fixture(scope="session")
def probe(service: Cluster) -> Probe:
    """Looks into the engines."""
    probe = Probe(service)
    asyncio.run(probe.loads())  # it takes seconds to start, and tests count them
    return probe
