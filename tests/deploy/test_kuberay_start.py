"""The start that KubeRay makes, without Kubernetes: a head that takes no work, a token, the RayService's configuration
put to Ray's dashboard before any worker is there, then a node for each group. The engine is fake, GPUs only said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from serve_app.config.profile import ROOT
from tests.ray.cluster import PATIENCE, Cluster, Node, fake_engine, until
from tests.ray.nodes import Network, not_here

pytestmark = [pytest.mark.ray, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(900)]

TOKEN = "a-token-of-the-tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
AGENT = 52365
"""Where KubeRay's probes ask each node's agent."""


def rayservice() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy/kuberay/rayservice.yaml").read_text(encoding="utf-8"))[
        "spec"
    ]
    return found


def submitted(port: int) -> dict[str, Any]:
    """`serveConfigV2` as it stands, but for the port, the model (the demo's tokenizer) and the engine (a fake one)."""
    config: dict[str, Any] = yaml.safe_load(rayservice()["serveConfigV2"])
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    for options in (config["controller_options"], application):
        options["runtime_env"]["env_vars"].update(PATIENCE)
    profile = yaml.safe_load((ROOT / "configs" / f"{application['args']['profile']}.yaml").read_text(encoding="utf-8"))
    wanted = {key: profile["replicas"][key] for key in ("gpus_per_replica", "cpus_per_replica", "accelerator_type")}
    application["args"] = {
        "profile": "cpu-demo",
        "engine": {"kind": "fake", "fake": fake_engine()},
        "replicas": {**wanted, **application["args"]["replicas"]},
        "ingress": profile["ingress"],
    }
    return config


def options_of(group: dict[str, Any]) -> list[str]:
    """What KubeRay makes of a group for `ray start`."""
    params = group["rayStartParams"]
    container = group["template"]["spec"]["containers"][0]
    options = [f"--num-cpus={params.get('num-cpus', container['resources']['limits']['cpu'])}"]
    options.append(f"--num-gpus={params['num-gpus']}")
    if "resources" in params:
        options.append("--resources=" + params["resources"].strip('"').replace("\\", ""))
    return options


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Cluster, dict[str, Node]]]:
    """The cluster, up, and its workers by group."""
    if reason := not_here():
        pytest.skip(reason)
    spec = rayservice()["rayClusterConfig"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with Network() as network, Cluster(network.add_node(), env) as cluster:
        cluster.start_head(*options_of(spec["headGroupSpec"]))
        put(cluster)
        workers = {}
        for name in ("ingress", "h100-x8"):
            workers[name] = network.add_node()
            cluster.add_node(workers[name], *options_of(groups[name]))
        asyncio.run(until_up(cluster, workers["ingress"]))
        yield cluster, workers


def put(cluster: Cluster) -> None:
    answer = httpx.put(
        applications(cluster), json=submitted(cluster.http_port), headers=AUTH, timeout=120, trust_env=False
    )
    assert answer.status_code == 200, answer.text


def applications(cluster: Cluster) -> str:
    return f"http://{cluster.head.address}:{cluster.dashboard_port}/api/serve/applications/"


async def status(cluster: Cluster) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False, headers=AUTH, timeout=30) as client:
        answer = await client.get(applications(cluster))
    found: dict[str, Any] = answer.json()["applications"].get("step", {})
    assert found.get("status") != "DEPLOY_FAILED", found["message"]
    return found


async def until_up(cluster: Cluster, node: Node) -> None:
    async def runs() -> bool:
        return (await status(cluster)).get("status") == "RUNNING"

    await until(runs, 400, "the application")
    await cluster.until_answers(node, 120)


async def test_it_serves_on_the_nodes_that_the_groups_are_for(site: tuple[Cluster, dict[str, Node]]) -> None:
    cluster, workers = site
    deployments = (await status(cluster))["deployments"]
    (engine,) = deployments["engine"]["replicas"]
    assert engine["node_ip"] == workers["h100-x8"].address
    assert cluster.head.address not in {one["node_ip"] for one in deployments["ingress"]["replicas"]}
    chat = {"model": "step3p7-flash", "messages": [{"role": "user", "content": "Hello!"}]}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        for node in workers.values():
            answer = await client.post(f"{cluster.url(node)}/v1/chat/completions", json=chat)
            assert answer.status_code == 200, answer.text
            assert json.loads(answer.text)["choices"][0]["finish_reason"] == "stop"


async def test_probes_are_answered_and_the_dashboard_wants_the_token(site: tuple[Cluster, dict[str, Node]]) -> None:
    cluster, workers = site
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        for node in workers.values():
            ready = await client.get(f"{cluster.url(node)}/-/healthz")
            assert (ready.status_code, ready.text) == (200, "success")
            alive = await client.get(f"http://{node.address}:{AGENT}/api/healthz")
            assert alive.status_code == 200, alive.text
        assert (await client.get(applications(cluster))).status_code == 401
