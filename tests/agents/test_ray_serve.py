"""An agent against the service as it runs: Ray Serve, its HAProxy, two ingresses, two engines."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.agents.conftest import installed
from tests.agents.conversations import ANSWER, DEFAULT, call, conversation, task_text, turn
from tests.agents.programs import CLAUDE, CODEX, Program, Workplace
from tests.agents.recording import MAX_MODEL_LEN
from tests.ray.cluster import Cluster, Node, kill, until
from tests.ray.conftest import ARGS, INGRESSES

pytestmark = [pytest.mark.agents, pytest.mark.ray, pytest.mark.timeout(600)]

WAIT = "touch waiting; while [ ! -e go ]; do sleep 0.2; done; echo went on"
TOOLS = {
    "claude": call("Bash", command=WAIT, description="Wait"),
    "codex": call("exec_command", cmd=WAIT, yield_time_ms=120_000),
}
SCRIPT = [
    *(conversation(f"WAIT-{name}", [turn(one), turn(say=ANSWER)]) for name, one in TOOLS.items()),
    DEFAULT,
]


def arguments() -> dict[str, Any]:
    """Those of the tests of Ray, with the script and room for an agent's prompts."""
    fake = {"script": SCRIPT, "max_model_len": MAX_MODEL_LEN, "tokens_per_step": 4, "max_num_seqs": 8}
    flags = {"max-model-len": MAX_MODEL_LEN, "max-num-batched-tokens": MAX_MODEL_LEN}
    usual: dict[str, Any] = dict(ARGS)
    return {
        **usual,
        "engine": {"kind": "fake", "fake": fake, "flags": flags},
        "ingress": {**usual["ingress"], "max_body_bytes": 32 << 20},
    }


@pytest.fixture(scope="module")
def service() -> Iterator[Cluster]:
    """The running service."""
    with Cluster(Node()) as cluster:
        cluster.start_head("--num-cpus=8")
        cluster.serve(arguments(), cluster.own_ports)
        asyncio.run(until_up(cluster))
        yield cluster


async def until_up(cluster: Cluster) -> None:
    await cluster.until_replicas("engine", 2, 180)
    await cluster.until_replicas("ingress", INGRESSES, 180)
    await cluster.until_answers(cluster.head, 60)


async def ingress_that_served(cluster: Cluster, path: str) -> list[dict[str, Any]]:
    """The ingress replicas whose access log has a request to this path."""
    logs = cluster.folder / "session_latest" / "logs"
    return [
        one
        for one in await cluster.replicas("ingress")
        for file in logs.glob(f"worker-*-{one['pid']}.err")
        if re.search(rf'serve_app\.access: request .*"{path}"', file.read_text(encoding="utf-8", errors="replace"))
    ]


@pytest.mark.parametrize(
    ("agent", "path"), [(CLAUDE, "/v1/messages"), (CODEX, "/v1/responses")], ids=["claude", "codex"]
)
async def test_an_ingress_that_dies_between_two_turns_is_not_noticed(
    service: Cluster, agent: Program, path: str, workplace: Workplace
) -> None:
    installed(agent)
    task = task_text(f"WAIT-{agent.name}", workplace.work)
    run = asyncio.create_task(workplace.run(agent, service.url(), task))

    async def waiting() -> bool:
        return run.done() or (workplace.work / "waiting").exists()

    await until(waiting, 90, "the command of the first turn")
    assert not run.done(), run.result()
    served = await until(lambda: ingress_that_served(service, path), 10, f"an ingress that served {path}")
    kill(served)
    (workplace.work / "go").touch()
    ran = await run
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    await service.until_replicas("ingress", INGRESSES, 180)
