"""What the processes of the service find in their environment, whatever the node's own says."""

from __future__ import annotations

import psutil
import pytest

from tests.ray.cluster import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]  # the first test starts the service


async def environment(service: Cluster, deployment: str) -> dict[str, str]:
    replica = (await service.replicas(deployment))[0]
    return psutil.Process(replica["pid"]).environ()


async def test_an_ingress_sees_no_gpu_and_asks_for_no_driver(service: Cluster) -> None:
    env = await environment(service, "ingress")
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["VLLM_TARGET_DEVICE"] == "cpu"


async def test_an_engine_replica_has_nothing_of_an_ingress_environment(service: Cluster) -> None:
    env = await environment(service, "engine")
    assert env.get("VLLM_TARGET_DEVICE") != "cpu"
