"""Ingress replicas are replaced while clients hold their connections: no request fails."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chaos.changes import Change
from chaos.service import Service
from tests.ray.cluster import APPLICATION, Cluster, Node, fake_engine, until
from tests.ray.conftest import ARGS, INGRESSES

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TALKERS, STREAMS, IDLE = 4, 3, 3
STAYS_S = "2"
"""For so long an ingress that is to go takes requests; 30 s by default, and then this would take a minute longer."""


@pytest.fixture
def rolling() -> Iterator[Cluster]:
    """A service of its own: it is not as it was afterwards."""
    with Cluster(Node()) as cluster:
        cluster.start_head("--num-cpus=8")
        engine = {"kind": "fake", "fake": fake_engine(max_num_seqs=16, gap_s=0.02)}
        cluster.serve(
            {**ARGS, "engine": engine}, {**cluster.own_ports, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": STAYS_S}
        )
        yield cluster


class Client:
    """Keeps its connection for as long as the service does, and never asks twice."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.answers = 0

    def ask(self, **more: object) -> None:
        """One request. Raises for whatever is no answer to its end."""
        body = {"model": "step3p7-flash", "prompt": "Count.", "max_tokens": 8, "ignore_eos": True, **more}
        headers = {"content-type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = self._connection.getresponse()
        said = response.read()
        assert response.status == 200, (response.status, said)
        assert not more.get("stream") or said.endswith(b"data: [DONE]\n\n"), said[-200:]
        self.answers += 1

    def ask_until(self, over: threading.Event) -> None:
        """One after the other."""
        while not over.is_set():
            self.ask()


async def test_no_client_that_keeps_its_connection_notices_that_ingresses_are_replaced(rolling: Cluster) -> None:
    await rolling.until_replicas("engine", 2, 180)
    old = {one["replica_id"] for one in await rolling.until_replicas("ingress", INGRESSES, 180)}
    await rolling.until_answers(rolling.head, 60)
    clients = [Client(rolling.http_port) for _ in range(TALKERS + STREAMS + IDLE)]
    talkers, others = clients[:TALKERS], clients[TALKERS:]
    streams = others[:STREAMS]
    over = threading.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(len(clients)) as threads:
        try:
            await asyncio.gather(*(loop.run_in_executor(threads, one.ask) for one in others))
            talking = [loop.run_in_executor(threads, one.ask_until, over) for one in talkers]
            long = {"stream": True, "max_tokens": 1500}
            streaming = [threads.submit(one.ask, **long) for one in streams]
            service = Service(f"http://{rolling.head.address}:{rolling.dashboard_port}", APPLICATION)
            await asyncio.to_thread(service.change, Change.INGRESS, "v2")

            async def replaced() -> bool:
                found = await rolling.all_replicas("ingress")
                running = [one for one in found if one["state"] == "RUNNING"]
                return not old & {one["replica_id"] for one in found} and len(running) == INGRESSES

            await until(replaced, 240, "new ingress replicas, and the old ones gone")
            await asyncio.gather(*map(asyncio.wrap_future, streaming))
            await asyncio.gather(*(loop.run_in_executor(threads, one.ask) for one in others))
        finally:
            over.set()
        await asyncio.gather(*talking)
    assert [one.answers for one in others] == [3] * STREAMS + [2] * IDLE
    assert sum(one.answers for one in talkers) > 100
