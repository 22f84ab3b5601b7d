"""`build(args)`: from the application's arguments in deploy.yaml to a Serve application. Wires everything.

    Ingress (CPU, many)  --handle-->  EngineReplica (one engine each; a deployment for each pool)
         `--handle-->  RateLimitOffice (one, where several ingresses share the limits of keys)

Everything is read and checked before a replica is placed: a configuration that cannot work ends the start in seconds,
with the line to change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.util
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from serve_app.cli import abort_serve_run
from serve_app.cli.preflight import MISPLACED_CANARY, checked_fleet
from serve_app.config import machine, room, vllm_device, vllm_flags
from serve_app.config.fleet import ENGINE, FleetPart
from serve_app.config.placement import replica_options
from serve_app.config.schema import AppConfig, ConfigError, image_bytes
from serve_app.config.vllm_flags import engine_argv
from serve_app.engine import compile_cache, node_prefetch, weights_prefetch
from serve_app.engine.activity import energy_reader
from serve_app.engine.autoscaling_config import autoscaling_config
from serve_app.engine.contract import Engine, StepSink
from serve_app.engine.key_costs import KeyCosts
from serve_app.engine.metrics import ReplicaMetrics
from serve_app.engine.replica import EngineFactory, EngineReplica
from serve_app.engine.scale_in import LOSS_TOKENS
from serve_app.engine.start_board import StartBoard
from serve_app.engine.vllm_process import environment_is_final
from serve_app.engine.vllm_tracing import prepare as prepare_tracing
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.engine.zero_scaling import IDLE_S
from serve_app.ingress.autoscaling import EventLoopPolicy
from serve_app.ingress.canary.deployment import follow_canary
from serve_app.ingress.cors import Cors
from serve_app.ingress.event_loop import EventLoopSampler
from serve_app.ingress.metrics import log_to_stderr
from serve_app.ingress.middleware import IngressMiddleware, MiddlewareSettings, RequestTracing
from serve_app.ingress.peers import AllIngresses, own_deployment, serve_status_page
from serve_app.ingress.rate_limits.deployment import follow_keys, office
from serve_app.observability.records import RecordStore
from serve_app.protocol.messages import NO_LABEL, ReplicaLabel
from serve_app.protocol.paced_reads import PacedReads
from serve_app.router.admission import Admission
from serve_app.router.attempts import DispatcherLimits, DispatcherSink
from serve_app.router.composite_transport import CompositeTransport
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.node_drain import DrainingNodes
from serve_app.router.replica_choice import ReplicaChoice
from serve_app.router.routing import RoutingPolicy
from serve_app.router.serve_transport import ServeTransport, TargetRouter
from serve_app.router.versions import EngineVersions

logger = logging.getLogger(__name__)

HEALTH_CHECK_PERIOD_S = 2.0
"""How often Serve checks a replica's health. The check only reads flags, so it may be frequent."""

UNBOUNDED = 1_000_000
"""Serve's own limit of calls per engine replica. The ingress decides what waits; a second, lower limit inside Serve
would queue requests invisibly."""

QUIET = LoggingConfig(enable_access_log=False)
"""Our log line for a request says more (`ingress/metrics.py`) than the two that Serve would write."""

INGRESS_SURGE_PERCENT = 25
"""Ingress replicas that a replacement may start beyond their number, at least one: the new one serves before the old
one stops. Serve's default, stop first, leaves the endpoint without an ingress where there is only one. A draining
replica holds its CPU for as long as its longest stream, so room for one more is needed in either order."""

ENGINE_SURGE_PERCENT = 1
"""One engine more, of a hundred or fewer: each takes whole GPUs, for minutes."""

DRAIN_GRACE_S = 30.0
"""What a replica gets beyond its drain timeout to migrate its last requests."""


def build(args: dict[str, object]) -> serve.Application:
    """The application. Raises `ConfigError`, naming the line to change, for what cannot work; a plain `serve run` then
    ends."""
    vllm_device.use_no_device()
    try:
        fleet = checked_fleet(args)
        if "canary" in args:
            raise ConfigError(MISPLACED_CANARY)
        engines = engine_deployments(fleet.parts)
    except ConfigError as error:
        if machine.RUN_MARK not in os.environ:  # `make serve` reports it itself
            abort_serve_run.end(str(error))
        raise
    return _ingress_deployment(fleet.ingress).bind(fleet.ingress, engines, office(fleet.ingress.ingress))


def engine_deployments(parts: Sequence[FleetPart], *, canary: bool = False) -> dict[str, serve.Application]:
    """An engine deployment for each part of the fleet, by the part's name. Raises `ConfigError` for options that Serve
    refuses."""
    free = room.free_nodes()
    return {
        part.name: _engine_deployment(
            part.config,
            part.deployment,
            ReplicaLabel(part.name, canary, part.weights),
            surge=room.surges(part.config.replicas, free),
        )
        for part in parts
    }


class EngineDeployment(EngineReplica):
    """`EngineReplica` as Serve starts it: from the configuration."""

    async def __init__(self, config: AppConfig, label: ReplicaLabel) -> None:  # type: ignore[misc]  # Serve awaits it
        log_to_stderr()
        if config.engine.kind == "vllm" and config.engine.compile_cache_dir is not None:
            compile_cache.keep_compiled_kernels(config.engine.compile_cache_dir)
        vllm_device.use_the_gpu()  # before the engine's flags are read: vLLM's parser looks for the device
        if config.replicas.nodes_per_replica > 1:
            join_this_ray()
        if (checkpoint := weights_prefetch.wanted(config)) is not None:
            weights_prefetch.begin(checkpoint)
            node_prefetch.begin(checkpoint, config.replicas)
        replica_id = serve.get_replica_context().replica_id.unique_id
        super().__init__(
            replica_id,
            engine_factory(config),
            WatchdogLimits(config.engine.hang_after_s, config.engine.stuck_after_s, config.engine.compile_limit_s),
            data_channel_host(),
            config.replicas.max_queued_requests,
            image_bytes(config.engine.flags),
            config.replicas.max_queue_wait_s,
            report=ReplicaMetrics(KeyCosts(config.replicas.gpus_per_replica, energy_reader())).set,
            starting=StartBoard(replica_id),
            node_ids=own_nodes(),
            label=label,
        )
        self._has_slo, self._may_sleep = config.slo.is_set, config.replicas.may_sleep
        async with asyncio.timeout(config.engine.start_timeout_s):
            await self.start()
        if config.engine.kind == "vllm":
            environment_is_final()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the policy needs, and no more: Serve averages every number of every replica ten times a second."""
        numbers = await super().record_autoscaling_stats()
        if self._has_slo:
            numbers = {**self.scaling_report().numbers(), LOSS_TOKENS: self.loss_tokens()}
        return {**numbers, IDLE_S: self.idle_s} if self._may_sleep else numbers

    async def __del__(self) -> None:
        """Serve awaits this at the end of a graceful shutdown."""
        await self.stop()


class Ingress:
    """One ingress replica: the middleware, vLLM's API app, and the dispatcher."""

    def __init__(
        self,
        config: AppConfig,
        engines: Mapping[str, DeploymentHandle[Any]],
        office: DeploymentHandle[Any] | None = None,
    ) -> None:
        log_to_stderr()
        vllm_device.use_no_device()
        self._config = config
        self._engines = engines
        self._office = office
        self._records = RecordStore()
        self._ingress_id = uuid.uuid4().hex
        self._peers = AllIngresses(own_deployment, self._records, self._ingress_id)
        self._closing = contextlib.AsyncExitStack()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve calls this after the constructor and serves what it returns."""
        # Not at the top: the process that builds the application does not need vLLM's server.
        from serve_app.ingress import status_routes
        from serve_app.ingress.api import build_api
        from serve_app.ingress.gauges import ProcessGauges
        from serve_app.ingress.key_metrics import KeyMetrics
        from serve_app.ingress.metrics import IngressMetrics

        config = self._config
        ingress_id = self._ingress_id
        limits = _dispatcher_limits(config)

        def open_dispatcher(sink: DispatcherSink) -> Dispatcher:
            transport = self._open_transport(ingress_id)
            incompatibility = EngineVersions(vllm_device.version()).mismatch
            choice = ReplicaChoice(RoutingPolicy(config.ingress.routing))
            return Dispatcher(
                transport, ingress_id, limits, sink, Admission.of(config), incompatibility, choice, DrainingNodes()
            )

        app, client = await build_api(
            vllm_flags.parse(engine_argv(config), vllm_flags.serve_parser()),
            open_dispatcher,
            config.ingress.allowed_media_hosts,
        )
        environment_is_final()
        status_routes.add(app, self._peers, config.ingress.operators)
        await self._closing.enter_async_context(client.dispatcher)
        self._client = client
        await self._closing.enter_async_context(client.grammars)
        client.grammars.start()
        keys, limiter = await follow_keys(config.ingress, self._office, ingress_id, self._closing)
        canary = await follow_canary(ingress_id, config, client.dispatcher, self._transport, self._closing)
        metrics = IngressMetrics(ingress_id, self._records, KeyMetrics(), canary.note)
        tracing = await self._open_tracing(ingress_id, metrics.spans_dropped)
        gauges = ProcessGauges()
        self._event_loop = EventLoopSampler(asyncio.get_running_loop(), lambda use: gauges.set(use, client.dispatcher))
        self._closing.enter_context(self._event_loop)
        shown = app, config, client.dispatcher, self._peers, self._event_loop, canary, self._closing
        self._status = await serve_status_page(*shown)
        return IngressMiddleware(app, _middleware_settings(config), keys, metrics, limiter, tracing)

    def _open_transport(self, ingress_id: str) -> CompositeTransport:
        may_sleep, reads = self._config.replicas.may_sleep, PacedReads()
        engines = {
            name: ServeTransport(engine, ingress_id, reads, may_sleep=may_sleep)
            for name, engine in self._engines.items()
        }
        self._transport = CompositeTransport(engines, reads)
        return self._transport

    async def _open_tracing(self, ingress_id: str, on_dropped: Callable[[int], None]) -> RequestTracing | None:
        if self._config.tracing.endpoint is None:
            return None
        from serve_app.observability.tracing import open_tracing  # OpenTelemetry's modules take a while

        return await self._closing.enter_async_context(open_tracing(self._config.tracing, ingress_id, on_dropped))

    async def find_records(self, query: bytes) -> bytes:
        """The records of past requests at this replica, for any ingress (`ingress/peers.py`)."""
        return self._peers.answer(query)

    async def report_status(self, query: bytes) -> bytes:
        """What this replica tells the status page that another one serves (`ingress/peers.py`)."""
        return b"" if self._status is None else self._status.encoded_report(query)

    async def check_health(self) -> None:
        """Raises when vLLM's output handling has failed: no token would reach a client any more. Serve then replaces
        this replica."""
        client = getattr(self, "_client", None)
        if client is not None and client.errored:
            raise client.dead_error

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What this replica's event loop did, for `EventLoopPolicy`; nothing in its first seconds."""
        return self._event_loop.stats()

    async def __del__(self) -> None:
        """Serve awaits this at the end of a graceful shutdown."""
        await self._closing.aclose()


def _dispatcher_limits(config: AppConfig) -> DispatcherLimits:
    return DispatcherLimits(
        request_deadline_s=config.ingress.request_deadline_s,
        drain_timeout_s=config.replicas.drain_timeout_s,
        may_sleep=config.replicas.may_sleep,
    )


def _middleware_settings(config: AppConfig) -> MiddlewareSettings:
    return MiddlewareSettings(
        served_name=config.model.served_name,
        aliases=config.model.aliases,
        max_body_bytes=config.ingress.max_body_bytes,
        keep_alive_s=config.ingress.keep_alive_s,
        sets_request_id=False,
        cors=Cors(config.ingress.allowed_origins),
    )


def engine_factory(config: AppConfig) -> EngineFactory:
    """Builds a replica's engine, not yet started."""

    def fake(sink: StepSink) -> Engine:
        from serve_app.engine.fake_config import fake_engine_config
        from serve_app.engine.fake_metrics import MeteredFakeEngine, serve_replica_id

        settings = fake_engine_config(config.engine.fake, tokenizer=config.model.source)
        return MeteredFakeEngine(settings, sink, serve_replica_id())

    def vllm(sink: StepSink) -> Engine:
        from serve_app.engine.vllm import VllmEngine
        from serve_app.engine.vllm_metrics import BufferedStatLogger

        return VllmEngine(
            [*engine_argv(config), *prepare_tracing(config.tracing)],
            sink,
            stat_loggers=[BufferedStatLogger],
            warms_up=config.engine.warm_up,
            gang_host=data_channel_host() if config.replicas.nodes_per_replica > 1 else None,
            start_timeout_s=config.engine.start_timeout_s,
        )

    return fake if config.engine.kind == "fake" else vllm


def join_this_ray() -> None:
    """Tell the engine core which Ray this process belongs to: its workers on other nodes are actors there.

    vLLM exports the address only where it does not spawn its processes. Without it, the core joins whatever Ray left
    its address in the temporary folder, or starts one of its own, without our placement group.
    """
    os.environ["RAY_ADDRESS"] = str(ray.get_runtime_context().gcs_address)


def own_nodes() -> list[str]:
    """The Ray nodes that this replica is on, its own first: those of its placement group, where it has one."""
    nodes = [ray.get_runtime_context().get_node_id()]
    if (group := ray.util.get_current_placement_group()) is not None:
        nodes += ray.util.placement_group_table(group)["bundles_to_node_id"].values()
    return list(dict.fromkeys(nodes))


def data_channel_host() -> str | None:
    """This node's address, for data channels; None where Ray encrypts its traffic, which data channels would not."""
    encrypts = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    return None if encrypts else str(ray.util.get_node_ip_address())


def _engine_deployment(
    config: AppConfig, name: str = ENGINE, label: ReplicaLabel = NO_LABEL, *, surge: bool = False
) -> serve.Application:
    try:
        options = _engine_options(config, name, surge=surge)
        return serve.deployment(EngineDeployment).options(**options).bind(config, label)
    except ValueError as error:  # pydantic's are, too
        raise ConfigError(f"replicas: Serve refuses the options of the deployment `{name}`: {error}") from error


def _engine_options(config: AppConfig, name: str, *, surge: bool) -> dict[str, Any]:
    replicas = config.replicas
    options: dict[str, Any] = {
        "name": name,
        "max_surge_percent": ENGINE_SURGE_PERCENT if surge else 0,
        "max_ongoing_requests": UNBOUNDED,
        "request_router_config": RequestRouterConfig(request_router_class=TargetRouter),
        "graceful_shutdown_timeout_s": replicas.drain_timeout_s + DRAIN_GRACE_S,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "logging_config": QUIET,
        **replica_options(replicas, config.engine.env),
    }
    if replicas.min == replicas.most:
        options["num_replicas"] = replicas.min
    else:
        options["autoscaling_config"] = autoscaling_config(config)
    return options


def _ingress_deployment(config: AppConfig) -> serve.Deployment:
    ingress = config.ingress
    size: dict[str, Any] = {"num_replicas": ingress.min_replicas}
    if ingress.max_replicas > ingress.min_replicas:
        policy_kwargs = {"target_load": ingress.target_load, "max_ongoing_requests": ingress.max_ongoing_requests}
        size = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=ingress.min_replicas,
                max_replicas=ingress.max_replicas,
                policy=AutoscalingPolicy(policy_function=EventLoopPolicy, policy_kwargs=policy_kwargs),
            )
        }
    return serve.deployment(serve.ingress()(Ingress)).options(
        **size,
        name="ingress",
        max_ongoing_requests=ingress.max_ongoing_requests,
        max_surge_percent=INGRESS_SURGE_PERCENT,
        graceful_shutdown_timeout_s=config.replicas.longest_stream_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config=QUIET,
        ray_actor_options={
            "num_cpus": ingress.cpus_per_replica,
            # It loads the model's configuration, tokenizer and image processor from where the engine does.
            "runtime_env": {"env_vars": {**config.engine.env, **vllm_device.FRONT_END_ENV}},
        },
    )
