"""Two ingresses share the limits of keys, on a Serve of their own: the session's has no keys."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from serve_app.ingress import auth
from serve_app.ingress.auth import KeyLimits
from serve_app.ingress.rate_limits.deployment import NAME
from tests.ray.cluster import Cluster, Node, fake_engine, kill, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]  # the first test starts the service

ARGS = {
    "profile": "cpu-demo",
    "engine": {"kind": "fake", "fake": fake_engine(max_num_seqs=64)},
    "replicas": {"min": 1, "max": 1, "cpus_per_replica": 1},
    "ingress": {"min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 1},
}
LIMIT = 40
NAMES = ("ann", "bob")
BODY = {"model": "step3p7-flash", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}


class Keys:
    """The keys file, and the keys that are in it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys: dict[str, str] = {}

    def add(self, name: str, limits: KeyLimits) -> None:
        self.keys[name] = auth.new_key()
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(auth.line_for(name, self.keys[name], limits) + "\n")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    keys = Keys(tmp_path_factory.mktemp("keys") / "keys.txt")
    for name in NAMES:
        keys.add(name, KeyLimits(requests_per_minute=LIMIT))
    return keys


@pytest.fixture(scope="module")
def limited(keys: Keys) -> Iterator[Cluster]:
    with Cluster(Node()) as cluster:
        cluster.start_head("--num-cpus=8")
        ingress = {**ARGS["ingress"], "keys_file": str(keys.file)}  # type: ignore[dict-item]
        cluster.serve({**ARGS, "ingress": ingress}, cluster.own_ports)
        asyncio.run(_until_up(cluster))
        yield cluster


async def _until_up(cluster: Cluster) -> None:
    for deployment, count in (("engine", 1), ("ingress", 2), (NAME, 1)):
        await cluster.until_replicas(deployment, count, 180)
    await cluster.until_answers(cluster.head, 60)


@asynccontextmanager
async def client_of(cluster: Cluster, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=cluster.url(), timeout=60, trust_env=False, headers={"x-api-key": key}
    ) as client:
        yield client


async def burst(client: httpx.AsyncClient, count: int) -> Counter[int]:
    """The statuses of so many requests at once."""
    answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=BODY) for _ in range(count)))
    return Counter(one.status_code for one in answers)


async def use_up(client: httpx.AsyncClient, used: int = 0) -> int:
    """How many requests are admitted in all until the key has had the whole of its limit."""

    async def spent() -> int:
        nonlocal used
        statuses = await burst(client, 20)
        assert set(statuses) <= {200, 429}
        used += statuses[200]
        return used if used >= LIMIT else 0

    return await until(spent, 40, "the whole limit is used")


async def test_two_ingresses_admit_what_the_limit_says_and_no_more(limited: Cluster, keys: Keys) -> None:
    async with client_of(limited, keys.keys["ann"]) as client:
        assert await use_up(client) == LIMIT
        assert (await burst(client, 40))[200] == 0
        refused = await client.post("/v1/chat/completions", json=BODY)
    assert 1 <= int(refused.headers["retry-after"]) <= 63
    assert refused.headers["x-ratelimit-limit-requests"] == str(LIMIT)


async def test_the_limit_holds_when_the_office_is_killed(limited: Cluster, keys: Keys) -> None:
    async with client_of(limited, keys.keys["bob"]) as client:
        used = (await burst(client, 10))[200]
        (office,) = await limited.replicas(NAME)
        kill([office])
        # What the other ingress holds comes when there is an office again.
        assert await use_up(client, used) == LIMIT

        async def replaced() -> bool:
            return [one["replica_id"] for one in await limited.replicas(NAME)] not in ([], [office["replica_id"]])

        await until(replaced, 60, "another office")
        assert (await burst(client, 40))[200] == 0


async def test_a_new_key_works_without_a_restart(limited: Cluster, keys: Keys) -> None:
    keys.add("cid", KeyLimits(max_concurrent=4))
    async with client_of(limited, keys.keys["cid"]) as client:

        async def known() -> bool:
            return set(await burst(client, 4)) <= {200, 429}

        await until(known, 20, "both ingresses have read the file")
        assert (await client.get("/v1/models")).status_code == 200
