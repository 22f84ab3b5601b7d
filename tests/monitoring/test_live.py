"""Every query of every panel and every alert against a live service: Serve, fake engines, and a real Prometheus.

One service and one order of events: healthy, then one fault after another, each until its alerts fire.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from monitoring.contents import DASHBOARDS
from serve_app.ingress import auth
from tests.monitoring import prometheus
from tests.monitoring.prometheus import Prometheus
from tests.ray.cluster import Cluster, Node, fake_engine, until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason=prometheus.MISSING),
]

SLOTS, QUEUED = 16, 8
"""Of each of the two engines."""

KV_CACHE_TOKENS = 4096
STOPPED_S = 3.5

OF_FAULTS = {
    *("StepEngineHung", "StepEngineDied", "StepErrorBudgetFastBurn", "StepErrorBudgetSlowBurn"),
    *("StepNoReplicaUp", "StepQueueFull", "StepKvCachePressure"),
}
"""Alerts that need a fault. With such short times a busy machine is enough for the others."""

GREETING = "Good morning. " * 50
"""Long enough for a page of the prefix cache."""


def conversation(word: str, **fault: object) -> dict[str, object]:
    """A request with this word in it meets this fault."""
    return {"when": [word], "turns": [{"raw": "A" * 40, "fault": {"at_token": 2, **fault}}]}


ENGINE = fake_engine(
    max_num_seqs=SLOTS,
    max_model_len=8192,
    kv_cache_tokens=KV_CACHE_TOKENS,
    tokens_per_step=4,
    prefix_caching=True,
    prefill_tokens_per_s=5000,
    script=[
        conversation("HANGS", kind="hang"),
        conversation("CRASHES", kind="crash", on_resume=True),
        {"when": ["IS SLOW"], "turns": [{"raw": "A" * 40, "fault": {"kind": "slow", "at_token": 0, "factor": 60.0}}]},
    ],
)
ARGS: dict[str, Any] = {
    "profile": "cpu-demo",
    "engine": {"kind": "fake", "fake": ENGINE, "hang_after_s": 5},
    "replicas": {"min": 2, "max": 2, "cpus_per_replica": 1, "max_queued_requests": QUEUED},
    "ingress": {"min_replicas": 1, "max_replicas": 1, "cpus_per_replica": 1, "request_deadline_s": 15},
}


class Client:
    """Sends requests with the keys of the service."""

    def __init__(self, http: httpx.AsyncClient, keys: list[str]) -> None:
        self._http = http
        self._keys = keys
        self._sent = 0

    async def chat(self, text: str, **options: object) -> int:
        """The status of one answer."""
        return await self._post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **options})

    async def complete(self, prompt: list[int], **options: object) -> int:
        """The same of a prompt of tokens."""
        return await self._post("/v1/completions", {"prompt": prompt, **options})

    async def many(self, count: int, text: str, **options: object) -> list[int]:
        """The same of many at a time."""
        return await asyncio.gather(*(self.chat(text, **options) for _ in range(count)))

    async def _post(self, path: str, body: dict[str, object]) -> int:
        self._sent += 1
        headers = {"Authorization": f"Bearer {self._keys[self._sent % len(self._keys)]}"}
        answer = await self._http.post(path, json={"model": "step3p7-flash", **body}, headers=headers)
        return answer.status_code


@asynccontextmanager
async def kept_up(client: Client, text: str, at_once: int = 6, **options: object) -> AsyncIterator[None]:
    """Requests, one batch after another, while the block runs."""

    async def forever() -> None:
        while True:
            await client.many(at_once, text, **options)

    load = asyncio.create_task(forever())
    try:
        yield
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    made = [auth.new_key(), auth.new_key()]
    file.write_text("".join(auth.line_for(name, key) + "\n" for name, key in zip(("ann", "bob"), made, strict=True)))
    return file, made


@pytest.fixture(scope="module")
def service(keys: tuple[Path, list[str]]) -> Iterator[Cluster]:
    with Cluster(Node(), {"RAY_metrics_report_interval_ms": "1000"}) as cluster:
        cluster.start_head("--num-cpus=8")
        cluster.serve({**ARGS, "ingress": {**ARGS["ingress"], "keys_file": str(keys[0])}}, cluster.own_ports)
        asyncio.run(_until_up(cluster))
        yield cluster


async def _until_up(cluster: Cluster) -> None:
    await cluster.until_replicas("engine", 2, 180)
    await cluster.until_replicas("ingress", 1, 180)
    await cluster.until_answers(cluster.head, 60)


@pytest.fixture(scope="module")
def address(service: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus.running(tmp_path_factory.mktemp("prometheus") / "files", service.folder) as url:
        yield url


def instant(expr: str) -> str:
    """A panel's query with Grafana's variables filled in."""
    return expr.replace("$__rate_interval", "20s").replace("$replica", ".*").replace("$key", ".*")


def panel_queries() -> list[str]:
    queries = [query.expr for one in DASHBOARDS for panel in one.panels() for query in panel.queries]
    return list(queries)


def rule_queries() -> list[str]:
    """The expressions of recording rules, as they are shortened."""
    texts = [prometheus.shortened(file.read_text(encoding="utf-8")) for file in prometheus.RULES]
    rules = [rule for text in texts for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    return [rule["expr"] for rule in rules if "record" in rule]


async def still_empty(server: Prometheus, queries: list[str]) -> list[str]:
    found = await asyncio.gather(*(server.query(instant(one)) for one in queries))
    return [one for one, result in zip(queries, found, strict=True) if not result]


async def until_all_answer(server: Prometheus, queries: list[str]) -> None:
    left = queries

    async def none_empty() -> bool:
        nonlocal left
        left = await still_empty(server, left)
        return not left

    try:
        await until(none_empty, prometheus.PATIENCE_S, "every query has a result")
    except AssertionError as error:
        raise AssertionError(f"without a result: {left}") from error


async def test_every_query_answers_and_every_alert_fires(
    service: Cluster, address: str, keys: tuple[Path, list[str]]
) -> None:
    async with (
        Prometheus(address) as server,
        httpx.AsyncClient(base_url=service.url(), trust_env=False, timeout=120) as http,
    ):
        client = Client(http, keys[1])
        await until(server.is_ready, prometheus.PATIENCE_S, "Prometheus answers")
        await _while_healthy(server, client)
        await _with_drafts_refused(server, client)
        await _with_a_stopped_ingress(service, server)
        await _with_a_full_cache(server, client)
        await _with_full_queues(server, client)
        await _with_slow_engines(server, client)
        await _with_a_hanging_engine(server, client)
        await _with_a_request_that_crashes_engines(service, server, client)
        assert not await still_empty(server, ['ALERTS{alertname=~"Step.*"}'])


async def _while_healthy(server: Prometheus, client: Client) -> None:
    async with kept_up(client, GREETING, max_tokens=40):
        everything = panel_queries() + rule_queries()
        await until_all_answer(server, [one for one in everything if "ALERTS" not in one])
        await until_all_answer(server, ["step:mtp_acceptance:ratio10m offset 20s"])  # what a drop is compared with
    assert not await server.firing() & OF_FAULTS


async def _with_drafts_refused(server: Prometheus, client: Client) -> None:
    """A request for two tokens gets one drafted token of three."""
    async with kept_up(client, GREETING, max_tokens=2):
        await server.until_fired("StepMtpAcceptanceDrop")


async def _with_a_stopped_ingress(service: Cluster, server: Prometheus) -> None:
    (ingress,) = await service.replicas("ingress")
    os.kill(ingress["pid"], signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_S)
    finally:
        os.kill(ingress["pid"], signal.SIGCONT)
    await server.until_fired("StepIngressEventLoopLag", "StepFramesLate")


async def _with_a_full_cache(server: Prometheus, client: Client) -> None:
    long = [
        asyncio.create_task(client.complete([65 + n] * (KV_CACHE_TOKENS - 50), max_tokens=4000, ignore_eos=True))
        for n in range(4)
    ]
    await server.until_fired("StepKvCachePressure")
    for one in long:
        one.cancel()
    await asyncio.gather(*long, return_exceptions=True)


async def _with_full_queues(server: Prometheus, client: Client) -> None:
    too_many = 4 * (SLOTS + QUEUED)
    statuses = await client.many(too_many, GREETING, max_tokens=40)
    assert statuses.count(429) > len(statuses) / 10
    async with kept_up(client, GREETING, too_many, max_tokens=40):
        await server.until_fired("StepQueueFull")


async def _with_slow_engines(server: Prometheus, client: Client) -> None:
    async with kept_up(client, "The engine IS SLOW with this.", max_tokens=4):
        await server.until_fired("StepTtftBudgetFastBurn", "StepTtftBudgetSlowBurn")


async def _with_a_hanging_engine(server: Prometheus, client: Client) -> None:
    assert await client.chat("The engine HANGS with this.", max_tokens=30) == 200, "another engine has answered"
    await server.until_fired("StepEngineHung", "StepEngineSilent", "StepEngineDied")


async def _with_a_request_that_crashes_engines(service: Cluster, server: Prometheus, client: Client) -> None:
    await service.until_replicas("engine", 2, prometheus.PATIENCE_S)
    assert await client.chat("Each engine CRASHES with this.", max_tokens=30) >= 500
    burst = asyncio.create_task(client.many(4 * (SLOTS + QUEUED), GREETING, max_tokens=4))
    await server.until_fired("StepErrorBudgetFastBurn", "StepErrorBudgetSlowBurn", "StepNoReplicaUp")
    assert (await burst).count(503), "more than may wait for a replica"


def test_ray_keeps_its_dashboards_where_the_docs_say(service: Cluster) -> None:
    grafana = service.folder / "session_latest" / "metrics" / "grafana"
    provider = yaml.safe_load((grafana / "provisioning" / "dashboards" / "default.yml").read_text(encoding="utf-8"))
    folder = Path(provider["providers"][0]["options"]["path"])
    assert folder.resolve() == (grafana / "dashboards").resolve()
    assert (folder / "serve_grafana_dashboard.json").is_file()
    assert (grafana / "grafana.ini").is_file()


async def test_an_alert_fires_when_nothing_reports(service: Cluster, address: str) -> None:
    """The last test: it ends the ingress."""
    async with Prometheus(address) as server:

        async def reports() -> bool:
            return "StepNoIngress" not in await server.firing()

        await until(reports, prometheus.PATIENCE_S, "an ingress reports")
        (ingress,) = await service.replicas("ingress")
        os.kill(ingress["pid"], signal.SIGKILL)
        await server.until_fired("StepNoIngress")
