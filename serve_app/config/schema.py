"""The schema of deploy.yaml's `args` and of configs/*.yaml.

A profile (`configs/<name>.yaml`) describes a hardware layout; the application's `args` in deploy.yaml are laid over it,
key by key. Everything is checked before a weight is loaded: an unknown key is refused with the nearest known one, and
each refusal names the file and line to change. `docs/configuration.md` is generated from this module (`python -m
serve_app docs`).
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serve_app.config.pools import CanaryConfig, PoolConfig
from serve_app.config.replicas import ReplicasConfig
from serve_app.config.section import Section, WrongKey
from serve_app.config.slo import SloConfig
from serve_app.config.vllm_device import VARIABLE as DEVICE_VARIABLE
from serve_app.config.yaml_lines import KeyPath

Scalar = str | int | float | bool | None
FlagValue = Scalar | list[object] | dict[str, object]

MIB = 1024 * 1024

PARALLEL_SIZES = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
"""The flags whose product is the number of an engine's GPUs."""

READY_VARIABLE = "VLLM_ENGINE_READY_TIMEOUT_S"
"""How long vLLM's client waits for its engine, in whole seconds."""


class ConfigError(Exception):
    """The configuration cannot work. The message has a line for each fault, with the file and line to change."""


class ModelConfig(Section):
    """Which checkpoint is served, and under which names."""

    source: str
    """A Hugging Face id, or a path to a checkpoint (a relative one starts at the repository, else at the working
    directory)."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id. Pin it: a moved branch gives replicas of different weights."""
    served_name: Annotated[str, Field(min_length=1)] = "step3p7-flash"
    """The name that `GET /v1/models` lists and that requests ask for."""
    aliases: tuple[str, ...] = ("claude-*",)
    """Further names that requests may use; `*` at the end stands for any ending. Coding agents insist on their vendor's
    names."""
    default_reasoning_effort: Literal["low", "medium", "high"] = "medium"
    """Reasoning effort where a request sets none."""

    @model_validator(mode="after")
    def _stars_stand_at_the_end(self) -> ModelConfig:
        for alias in self.aliases:
            if "*" in alias[:-1] or not alias:
                raise ValueError(f"alias {alias!r}: one `*` is allowed, as the last character")
        return self


class EngineConfig(Section):
    """How one replica's engine runs."""

    kind: Literal["vllm", "fake"] = "vllm"
    """`fake` is the engine of the tests: deterministic tokens, no model, failures on demand."""
    flags: dict[str, FlagValue] = {}
    """Any flag of `vllm serve` by its long name: `max-num-seqs: 64`, `enforce-eager: true`, `speculative-config:
    {method: mtp}`. vLLM's own parser checks them."""
    env: dict[str, str] = {}
    """Environment of every process that loads the model's files: the engine and its workers (`VLLM_*`, `NCCL_*` ...),
    and the ingress, which needs its configuration and tokenizer (`HF_HOME`, `HF_ENDPOINT` ...). Ray's dashboard shows
    it: a token (`HF_TOKEN`) belongs into the environment of the nodes."""
    compile_cache_dir: str | None = "~/.cache/step-serve/compile"
    """Where kernels that are compiled at a start or at their first use are kept, so that the next start finds them. On
    each node, shared by its replicas, with a folder per versions and kind of machine below it. In a container: a
    volume. `null`: each compiler's own place."""
    prefetch_weights: bool = True
    """Whether the weights are read into the page cache while vLLM is imported, on the replica's node and on all others
    that may get one (docs/operations.md). Only where they are files there and fit into the memory that is left."""
    start_timeout_s: PositiveFloat = 3600.0
    """Longest an engine may take to start. 400 GB from a slow disk and a first compilation take most of an hour.
    vLLM's own limit (`VLLM_ENGINE_READY_TIMEOUT_S`) follows it, and cannot stand in `env`."""
    warm_up: bool = True
    """Whether an engine runs requests of every kind before it is ready (log probabilities, grammars, images, batches),
    so that no kernel is compiled while a user waits."""
    hang_after_s: Annotated[float, Field(gt=1, le=29)] = 20.0
    """An engine with work and without any movement for this long (no step, no CPU time of its processes, no GPU at
    work) counts as hung and is replaced. A slow step is not a hang, however long its prompt."""
    stuck_after_s: Annotated[float, Field(gt=1)] = 100.0
    """An engine that moves but finishes no step for this long counts as stuck and is replaced: a loop that spins, a
    collective that waits for a peer. If three times its slowest step so far is longer, that counts."""
    compile_limit_s: Annotated[float, Field(gt=1)] = 900.0
    """The limit of `stuck_after_s` while a compiler (`nvcc`, `ptxas`, `gcc`, TorchInductor) runs below the engine:
    kernels that are built at their first use take minutes on a cold cache."""
    fake: dict[str, object] = {}
    """Options of the fake engine (`serve_app/engine/fake_config.py`), with `kind: fake` only."""

    @model_validator(mode="after")
    def _options_are_read(self) -> EngineConfig:
        if self.fake and self.kind != "fake":
            raise WrongKey(f"fake: nothing reads these options with kind: {self.kind}; remove them", ("fake",))
        return self

    @model_validator(mode="after")
    def _device_is_not_in_the_environment(self) -> EngineConfig:
        if DEVICE_VARIABLE in self.env:
            raise ValueError(f"env: {DEVICE_VARIABLE} is set by the application, for each kind of process; remove it")
        return self

    @model_validator(mode="after")
    def _start_has_one_limit(self) -> EngineConfig:
        if READY_VARIABLE in self.env:
            raise ValueError(f"env: {READY_VARIABLE} follows engine.start_timeout_s; set that, and remove it here")
        return self


class IngressConfig(Section):
    """The replicas that serve HTTP. They need no GPU."""

    min_replicas: PositiveInt = 1
    """Fewest ingress replicas. Two or more keep the endpoint up while one restarts."""
    max_replicas: PositiveInt = 4
    """Most ingress replicas. Above `min_replicas`, their number follows what they have to do."""
    target_load: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of one core's time that the event loop of an ingress, which is one thread, should use on average, and of
    `max_ongoing_requests` that it should hold. Beyond it more ingresses are started: a busier loop hands tokens on
    later."""
    cpus_per_replica: PositiveFloat = 1.0
    """Ray CPUs reserved by one ingress replica."""
    routing: Literal["cost", "session-hash", "round-robin", "power-of-two"] = "cost"
    """How an engine is chosen for a request. `cost`: the one where prefill that its cache does not save, what waits
    there and what it delays take the least time. The others are for comparison (`python -m bench routing`)."""
    keys_file: str | None = None
    """File of hashed API keys (`python -m serve_app hash-key`), with the limits, classes and weights of those that
    have some. It is read again when it changes. None: no key is required."""
    operators: tuple[str, ...] = ()
    """Names of keys that see the requests of all keys (`explain`, `/status`). Others see their own. Empty: all do."""
    status_page: bool = True
    """Whether `/status` has a page with the state of the service and a playground. The page itself needs no key and
    holds no data; what it shows (`/status/fleet`) needs one where there are keys."""
    max_body_bytes: PositiveInt = 64 * MIB
    """Largest request body. Images travel in it, a third larger than their files."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may call the service from a browser (CORS), by origin: `https://app.example`,
    `http://localhost:*` (any port), or `*` for all. Empty: none, so that no page that somebody visits can use an
    endpoint without keys behind their back. Programs are not browsers and need no entry."""
    allowed_media_hosts: tuple[str, ...] = ()
    """Private host names or addresses that image URLs may lead to. All other private, loopback and link-local addresses
    are refused, and redirects to them."""
    keep_alive_s: Annotated[float, Field(gt=0, le=10)] = 8.0
    """A stream without an event for this long gets a comment or ping; clients and load balancers give up on silence."""
    request_deadline_s: PositiveFloat = 900.0
    """A request without a new token for this long gets no further attempt: failovers and restarts count."""
    max_ongoing_requests: PositiveInt = 2048
    """Requests that one ingress replica holds at a time, waiting ones included. Beyond it Serve itself answers 503,
    so it also limits `replicas.max_queued_requests`: no more requests wait at the engines than all ingresses hold."""

    @model_validator(mode="after")
    def _origins_are_origins(self) -> IngressConfig:
        for origin in self.allowed_origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+(:\*)?", origin):
                raise ValueError(
                    f"allowed_origins: {origin!r} is no origin; write scheme://host[:port] without a path, "
                    "`:*` for any port, or `*`"
                )
        return self

    @model_validator(mode="after")
    def _counts_are_in_order(self) -> IngressConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        return self


class TracingConfig(Section):
    """Traces of requests, by OpenTelemetry (docs/observability.md). Where they go and how many there are stands
    here only; of the `OTEL_*` variables, those for headers, certificates, timeouts and the service's name are read."""

    endpoint: str | None = None
    """The collector: `http://collector:4317` for OTLP over gRPC; with port 4318 or a path, OTLP over HTTP. None: there
    are no traces, and nothing is spent on them."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of requests that have a trace. A client that sends `traceparent` decides itself: flag `01` or `00`."""

    @model_validator(mode="after")
    def _endpoint_is_an_address(self) -> TracingConfig:
        address = re.fullmatch(r"https?://[^/?#:\s]+(?::(\d+))?(/[^?#\s]*)?", self.endpoint or "http://-")
        if address is None or int(address[1] or 1) > 65535:
            raise ValueError(f"endpoint: {self.endpoint!r} is no address; write http://host:port or https://host:port")
        return self

    @property
    def uses_grpc(self) -> bool:
        """Whether `endpoint` speaks OTLP over gRPC."""
        return re.fullmatch(r"https?://[^/]+(?<!:4318)/?", self.endpoint or "") is not None

    @property
    def traces_url(self) -> str:
        """`endpoint`, with the path that OTLP over HTTP has for traces."""
        address = (self.endpoint or "").rstrip("/")
        return address if self.uses_grpc or address.endswith("/v1/traces") else f"{address}/v1/traces"


class AppConfig(Section):
    """The whole configuration of the application."""

    profile: str = "auto"
    """A name in configs/, a path to such a file, or `auto`: by the GPUs of the cluster."""
    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    ingress: IngressConfig = IngressConfig()
    tracing: TracingConfig = TracingConfig()
    pools: tuple[PoolConfig, ...] = ()
    """Engines of several hardware layouts in one fleet. Empty: one, by `profile`."""
    canary: CanaryConfig | None = None
    """Only in an application that is a canary (`import_path: serve_app.canary:build`): how it is tried."""
    slo: SloConfig = SloConfig()

    @model_validator(mode="after")
    def _replicas_go_with_the_objective(self) -> AppConfig:
        if self.replicas.schedule and not self.slo.is_set:
            message = "replicas.schedule needs slo (ttft_p95_s or tpot_p95_s): only that policy has a schedule"
            raise WrongKey(message, ("replicas", "schedule"))
        ttft_s, wait_s = self.slo.ttft_p95_s, self.replicas.max_queue_wait_s
        if ttft_s is not None and ttft_s >= wait_s:
            raise WrongKey(
                f"slo.ttft_p95_s ({ttft_s:g}) is not below replicas.max_queue_wait_s ({wait_s:g}), after which a "
                "request is refused; is it in milliseconds?",
                ("slo", "ttft_p95_s"),
            )
        return self

    @model_validator(mode="after")
    def _gpus_match_the_parallel_sizes(self) -> AppConfig:
        replicas = self.replicas
        product = math.prod(self._size(name) for name in PARALLEL_SIZES)
        ranks = self._size("data-parallel-size")
        if replicas.nodes_per_replica > 1 and ranks > 1:
            raise WrongKey(
                f"data-parallel-size is {ranks} and replicas.nodes_per_replica {replicas.nodes_per_replica}: vLLM "
                "starts the ranks of other nodes by its own launcher, not in a replica's placement group; use "
                "tensor-parallel-size and pipeline-parallel-size over nodes, or one replica per node",
                *flag_paths("data-parallel-size"),
                ("replicas", "nodes_per_replica"),
            )
        gpus = replicas.gpus_per_replica
        if self.engine.kind == "vllm" and gpus and product != gpus:
            raise WrongKey(
                f"replicas.gpus_per_replica is {gpus}, but the parallel sizes in engine.flags multiply to {product}",
                ("replicas", "gpus_per_replica"),
                *(path for name in PARALLEL_SIZES for path in flag_paths(name)),
            )
        return self

    def _size(self, name: str) -> int:
        size = flag(self.engine.flags, name)
        if isinstance(size, str):
            raise WrongKey(
                f"engine.flags.{name} is {size!r}, a text; write the number without quotes", *flag_paths(name)
            )
        return size if isinstance(size, int) else 1


def flag(flags: dict[str, FlagValue], name: str, default: FlagValue = None) -> FlagValue:
    """The flag's value, written with dashes or underscores."""
    for spelling in (name, name.replace("-", "_")):
        if spelling in flags:
            return flags[spelling]
    return default


def flag_paths(name: str) -> tuple[KeyPath, KeyPath]:
    """The keys by which a file may set the flag."""
    return ("engine", "flags", name), ("engine", "flags", name.replace("-", "_"))


def image_bytes(flags: dict[str, FlagValue]) -> int:
    """How many bytes of processed images a replica keeps: as many as an ingress, by vLLM's flag for its cache (GiB)."""
    asked_gb = flag(flags, "mm-processor-cache-gb", 4)  # vLLM's default
    return int(float(asked_gb) * (1 << 30)) if isinstance(asked_gb, int | float | str) else 0
