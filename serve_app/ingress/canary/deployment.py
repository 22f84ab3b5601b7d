"""The judge of a canary as a Serve deployment, and the canary's application as an ingress reaches it.

A canary is an application of its own: in Serve's declarative configuration a change of an application's `args` replaces
all of its replicas, so that a canary inside the service's application would restart the fleet that it is compared with,
when it comes and when it goes (decision 0038).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from typing import Any

import grpc
import msgspec
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serve_app.config.deployment import CANARY_SUFFIX
from serve_app.config.fleet import CANARY, FleetPart
from serve_app.config.schema import AppConfig, ConfigError
from serve_app.ingress.canary.follower import CanaryFollower, JudgeAway
from serve_app.ingress.canary.gauges import CanaryGauges
from serve_app.ingress.canary.trial import Directive, Trial, TrialReport
from serve_app.ingress.canary.verdict import TrialState, Verdict
from serve_app.ingress.metrics import log_to_stderr
from serve_app.ingress.serve_watch import CONTROLLER, NAMESPACE
from serve_app.protocol.paced_reads import PacedReads
from serve_app.router.attempts import Transport
from serve_app.router.composite_transport import CompositeTransport
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.serve_transport import ServeTransport

logger = logging.getLogger(__name__)

NAME = "canary-judge"
CALL_FAILED = (RayError, RayServeException, grpc.RpcError, msgspec.MsgspecError, LookupError, ValueError)

ADVICE = {
    TrialState.PROMOTED: (
        "it goes on with its share; to finish, put its `model` and `engine` keys into the args of the service's "
        "application, deploy, and then remove the canary's application"
    ),
    TrialState.ROLLED_BACK: "it gets no more requests; remove its application, or change its args for another trial",
}


class CanaryJudge:
    """`Trial` as Serve starts it. `engines` belongs to its application because it is bound here."""

    def __init__(self, config: AppConfig, engines: DeploymentHandle[Any]) -> None:
        log_to_stderr()
        if config.canary is None:
            raise ConfigError("a canary needs the block `canary`")
        self._engines = engines
        self._trial = Trial(trial_name(config), config.canary, _say)

    async def exchange(self, report: bytes) -> bytes:
        """See `Trial`."""
        decoded = msgspec.msgpack.decode(report, type=TrialReport)
        return msgspec.msgpack.encode(self._trial.exchange(decoded))


def _say(verdict: Verdict) -> None:
    log = logger.warning if verdict.state is TrialState.ROLLED_BACK else logger.info
    log("canary judged", extra={"state": verdict.state, "reason": verdict.reason, "next": ADVICE[verdict.state]})


def trial_name(config: AppConfig) -> str:
    """Names the trial by all that is tried: another configuration is another trial."""
    return hashlib.blake2b(
        json.dumps(config.model_dump(mode="json"), sort_keys=True).encode(), digest_size=6
    ).hexdigest()


def judge(config: AppConfig, engines: serve.Application) -> serve.Application:
    """The deployment of the judge, over the canary's engines."""
    deployment = serve.deployment(CanaryJudge).options(
        name=NAME,
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(config, engines)


class ServeCanary:
    """`CanaryApplication` of this service's application. `reads` receives its engines' frames, too."""

    def __init__(self, application: str, ingress_id: str, config: AppConfig, reads: PacedReads | None) -> None:
        self._application = application + CANARY_SUFFIX
        self._ingress_id = ingress_id
        self._reads = reads
        self._engines = FleetPart(CANARY, config).deployment
        self._controller: Any = None
        self._ask: Any = None

    async def exists(self) -> bool:
        """See `CanaryApplication`."""
        try:
            if self._controller is None:
                self._controller = await asyncio.to_thread(ray.get_actor, CONTROLLER, namespace=NAMESPACE)
            name = await self._controller.get_ingress_deployment_name.remote(self._application)
        except CALL_FAILED as error:
            raise JudgeAway(str(error)) from error
        return bool(name == NAME)

    async def connect(self) -> Transport:
        """See `CanaryApplication`."""
        try:
            judge = await asyncio.to_thread(serve.get_deployment_handle, NAME, self._application)
            engines = await asyncio.to_thread(serve.get_deployment_handle, self._engines, self._application)
        except CALL_FAILED as error:
            raise JudgeAway(str(error)) from error
        self._ask = judge.options(
            method_name="exchange", request_serialization="pickle", response_serialization="pickle"
        )
        return ServeTransport(engines, self._ingress_id, self._reads)

    async def exchange(self, report: TrialReport) -> Directive:
        """See `CanaryApplication`."""
        try:
            answer = await self._ask.remote(msgspec.msgpack.encode(report))
            return msgspec.msgpack.decode(answer, type=Directive)
        except CALL_FAILED as error:
            raise JudgeAway(str(error)) from error


async def follow_canary(
    ingress_id: str,
    config: AppConfig,
    dispatcher: Dispatcher,
    fleet: CompositeTransport,
    closing: contextlib.AsyncExitStack,
) -> CanaryFollower:
    """Follow the canary of this ingress's application, if there is one or one comes, until `closing`."""
    application = ServeCanary(serve.get_replica_context().app_name, ingress_id, config, fleet.reads)
    gauges = CanaryGauges()
    return await closing.enter_async_context(
        CanaryFollower(
            ingress_id,
            application,
            dispatcher.canary,
            fleet,
            lambda: any(one.label.is_canary and one.takes_work for one in dispatcher.connections()),
            lambda directive: gauges.set(directive, dispatcher.canary),
        )
    )
