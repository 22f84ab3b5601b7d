"""Two pools behind one endpoint, a bad canary beside them, which is rolled back, and an upgrade with room to spare."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from serve_app.cli import serve_api
from serve_app.config.deployment import CANARY_BUILD, CANARY_SUFFIX
from tests.ray.cluster import APPLICATION, Cluster, Node, fake_engine, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SHARE = 0.2
SESSIONS = 40


def pool(name: str, rate: int) -> dict[str, object]:
    fake = fake_engine(max_num_seqs=16, prefill_tokens_per_s=rate, max_num_batched_tokens=512)
    replicas = {"min": 1, "max": 1, "resources": {"gpus": 1}}
    return {"name": name, "replicas": replicas, "engine": {"fake": fake}}


SHARED = {"profile": "cpu-demo", "engine": {"kind": "fake"}, "replicas": {"cpus_per_replica": 1}}
ARGS = {
    **SHARED,
    "pools": [pool("slow", 4000), pool("fast", 12_000)],
    "ingress": {"min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 1},
}
CANARY = {
    **SHARED,
    "engine": {"kind": "fake", "fake": fake_engine(max_num_seqs=16, first_token_s=1.0)},
    "canary": {"share": SHARE, "for_s": 600, "min_requests": 100},
}


@pytest.fixture(scope="module")
def pools() -> Iterator[Cluster]:
    with Cluster(Node()) as cluster:
        # A third "GPU" for the successor of an engine.
        cluster.start_head("--num-cpus=12", "--resources", json.dumps({"gpus": 3}))
        cluster.serve(ARGS, cluster.own_ports)
        yield cluster


def add_canary(cluster: Cluster) -> None:
    """Deploy the running configuration with a second application."""

    def with_canary(service: dict[str, Any]) -> list[dict[str, Any]]:
        changed = {"name": APPLICATION + CANARY_SUFFIX, "route_prefix": None, "import_path": CANARY_BUILD}
        return [service, {**service, **changed, "args": CANARY}]

    deploy(cluster, with_canary)


def deploy(cluster: Cluster, change: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """Deploy the applications that `change` makes of the running service's."""
    dashboard = f"http://{cluster.head.address}:{cluster.dashboard_port}"
    details = serve_api.fetch(dashboard, 30)
    service = details.applications[APPLICATION].deployed_app_config
    assert service is not None
    kept = {"proxy_location": details.proxy_location, "http_options": details.http_options}
    config = {**kept, "applications": change(service)}
    serve_api.request(dashboard, serve_api.APPLICATIONS, 60, put=json.dumps(config).encode())


class Client:
    """Asks in the name of sessions, and knows where each was answered."""

    def __init__(self, cluster: Cluster, client: httpx.AsyncClient) -> None:
        self._cluster = cluster
        self._client = client
        self.answered = 0

    async def ask(self, session: str, words: int = 200) -> None:
        body = {"model": "step3p7-flash", "prompt": f"{session} " + "word " * words, "max_tokens": 8}
        answer = await self._client.post("/v1/completions", json=body, headers={"x-session-id": session})
        assert answer.status_code == 200, answer.text
        self.answered += 1

    async def ask_all(self) -> None:
        await asyncio.gather(*(self.ask(f"s{number}") for number in range(SESSIONS)))

    async def fleet(self) -> dict[str, Any]:
        answer = await self._client.get("/status/fleet")
        found: dict[str, Any] = answer.json()
        return found

    def pools_of_sessions(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in sorted(self._cluster.logged("serve_app.access: request {")):  # they begin with the time
            fields = json.loads(line[line.index("{") :])
            if "session" in fields:
                found.setdefault(fields["session"], []).extend(fields["pool"])
        return found


async def test_pools_share_the_load_and_a_bad_canary_is_rolled_back(pools: Cluster) -> None:
    for name in ("engine-slow", "engine-fast"):
        await pools.until_replicas(name, 1, 240)
    ingresses = {one["replica_id"] for one in await pools.until_replicas("ingress", 2, 180)}
    engines = {one["replica_id"] for name in ("engine-slow", "engine-fast") for one in await pools.replicas(name)}
    await pools.until_answers(pools.head, 60)
    async with httpx.AsyncClient(base_url=pools.url(), trust_env=False, timeout=120) as http:
        client = Client(pools, http)
        for _ in range(4):
            await client.ask_all()
        used = Counter(one for names in client.pools_of_sessions().values() for one in names)
        assert set(used) == {"slow", "fast"}
        assert used["fast"] > 1.5 * used["slow"], used

        await asyncio.to_thread(add_canary, pools)

        async def tried() -> bool:
            return (await client.fleet())["canary"] is not None

        await until(tried, 120, "an ingress that knows of the canary")
        await until(lambda: _up(client, "canary"), 120, "a canary that takes work")
        assert {one["replica_id"] for one in await pools.replicas("ingress")} == ingresses

        async def judged() -> str:
            await client.ask_all()
            canary = (await client.fleet())["canary"]
            return canary["reason"] if canary["state"] == "rolled_back" else ""

        reason = await until(judged, 60, "a verdict")
        assert "time to first token" in reason
        await until(lambda: _share_is_zero(pools), 20, "both ingresses know it")
        by_session = client.pools_of_sessions()
        tried_by = {session for session, names in by_session.items() if "canary" in names}
        assert 0 < len(tried_by) <= 2 * SHARE * SESSIONS
        await client.ask_all()
        after = {session: names[-1] for session, names in client.pools_of_sessions().items()}
        assert "canary" not in after.values()
        left = {one["replica_id"] for name in ("engine-slow", "engine-fast") for one in await pools.replicas(name)}
        assert left == engines, "the canary has replaced no engine"


async def _up(client: Client, name: str) -> bool:
    return any(one["pool"] == name and one["takes_work"] for one in (await client.fleet())["replicas"])


async def _share_is_zero(cluster: Cluster) -> bool:
    lines = cluster.logged("the canary's share changes")
    return sum('"share":0.0' in line and '"state":"rolled_back"' in line for line in lines) == 2


async def test_with_room_to_spare_a_successor_starts_before_its_predecessor_stops(pools: Cluster) -> None:
    names = ("engine-slow", "engine-fast")
    old = {one["replica_id"] for name in names for one in await pools.replicas(name)}
    slower = {**ARGS, "engine": {"kind": "fake", "fake": {"gap_s": 0.011}}}
    await asyncio.to_thread(deploy, pools, lambda service: [{**service, "args": slower}])
    least: dict[str, int] = dict.fromkeys(names, 2)
    async with httpx.AsyncClient(base_url=pools.url(), trust_env=False, timeout=120) as http:
        client = Client(pools, http)

        async def replaced() -> bool:
            await client.ask("one more", words=5)
            listed = await pools.deployments()
            if not listed:
                return False  # Serve builds the application; the request above was answered
            running = {name: {one["replica_id"] for one in listed[name] if one["state"] == "RUNNING"} for name in names}
            for name, found in running.items():
                least[name] = min(least[name], len(found))
            return all(len(found) == 1 and not found & old for found in running.values())

        await until(replaced, 180, "new engines in both pools")
    assert least == dict.fromkeys(names, 1), "capacity has dipped"
