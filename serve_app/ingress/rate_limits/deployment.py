"""Keys and their limits as an ingress replica has them, and the deployment that leases limits to several of them.

The deployment is one replica of a part of the application, so Serve starts it, replaces it and stops it with the rest.
Only an application with keys and more than one ingress has it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import grpc
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serve_app.config.schema import IngressConfig
from serve_app.ingress.keys_file import KeysFile
from serve_app.ingress.metrics import log_to_stderr
from serve_app.ingress.rate_limits.limiter import Leases, RateLimiter, Reports
from serve_app.ingress.rate_limits.sharing import Ask, LeaseHolder, LeaseOffice, OfficeAway

NAME = "rate-limits"

CALL_FAILED = (RayError, RayServeException, grpc.RpcError)
"""How a call ends without an answer."""

CALLS_AT_A_TIME = 1000
"""More than there are ingresses: each has one call open."""


class RateLimitOffice:
    """`LeaseOffice` as Serve starts it."""

    def __init__(self, expected: int) -> None:
        log_to_stderr()
        self._office = LeaseOffice(expected)

    async def exchange(self, ingress: str, reports: Reports) -> Leases | None:
        """See `LeaseOffice`."""
        return self._office.exchange(ingress, reports)


def office(config: IngressConfig) -> serve.Application | None:
    """The deployment, where there is anything to share."""
    if config.keys_file is None or config.max_replicas == 1:
        return None
    deployment = serve.deployment(RateLimitOffice).options(
        name=NAME,
        num_replicas=1,
        max_ongoing_requests=CALLS_AT_A_TIME,
        ray_actor_options={"num_cpus": 0},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(config.max_replicas)


async def follow_keys(
    config: IngressConfig,
    office: DeploymentHandle[Any] | None,
    ingress_id: str,
    closing: contextlib.AsyncExitStack,
) -> tuple[KeysFile | None, RateLimiter | None]:
    """The keys and their limits at one ingress replica, if keys are asked for. Both are followed until `closing`."""
    if config.keys_file is None:
        return None, None
    keys = await closing.enter_async_context(KeysFile(Path(config.keys_file)))
    limiter = RateLimiter(keys, shared_by=1 if office is None else config.max_replicas)
    if office is not None:
        await closing.enter_async_context(LeaseHolder(limiter, _asking(office), ingress_id))
    return keys, limiter


def _asking(office: DeploymentHandle[Any]) -> Ask:
    call = office.options(method_name="exchange", request_serialization="pickle", response_serialization="pickle")

    async def ask(ingress: str, reports: Reports) -> Leases | None:
        try:
            leases: Leases | None = await call.remote(ingress, reports)
        except CALL_FAILED as error:
            raise OfficeAway(str(error)) from error
        return leases

    return ask
