"""A fleet in this process: fake engines in their replicas, and ingresses' dispatchers over them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec

from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.engine.replica import EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.protocol.errors import ReplicaDied, ReplicaLost, ServeError
from serve_app.protocol.messages import (
    AttemptRequest,
    OnFrame,
    ReplicaInfo,
    RequestSpec,
    TokenDelta,
    decode_frame,
    decode_info,
    encode_request,
    encode_tokens,
)
from serve_app.protocol.pages import prompt_pages
from serve_app.protocol.service_class import DEFAULT_SHARE, Holder, Share
from serve_app.router.admission import Admission
from serve_app.router.attempts import DispatcherLimits
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.replica_choice import ReplicaChoice
from serve_app.router.request_context import RequestTrace, SubmittedRequest
from serve_app.router.routing import RoutingPolicy

INGRESSES = 2
UNBOUNDED = 10_000
"""Requests that may wait at an engine: nothing is refused."""


@dataclass(frozen=True)
class FleetSize:
    """How many engines there are, and what each can do at full size (8 GPUs of the H100's kind, about)."""

    replicas: int = 4
    kv_cache_tokens: int = 4_000_000
    prefill_tokens_per_s: float = 20_000.0
    tokens_per_step: int = 3
    step_s: float = 0.025
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 8192

    def engine(self, scale: float) -> FakeEngineConfig:
        """The engine for prompts that are scaled: it takes as long for them as for those of the full size."""
        return FakeEngineConfig(
            answer_tokens=(1 << 20, 1 << 20),
            gap_s=self.step_s / scale,
            tokens_per_step=self.tokens_per_step,
            max_num_seqs=self.max_num_seqs,
            max_model_len=262_144,
            prefix_caching=True,
            kv_cache_tokens=int(self.kv_cache_tokens * scale),
            prefill_tokens_per_s=self.prefill_tokens_per_s * scale,
            max_num_batched_tokens=int(self.max_num_batched_tokens * scale),
        )


@dataclass
class Answer:
    """What came back for one request. Times are of the loop's clock, in seconds."""

    trace: RequestTrace
    token_ids: list[int]
    ended_s: float


class Sink:
    """Collects the tokens of each request."""

    def __init__(self) -> None:
        self.token_ids: dict[str, list[int]] = {}
        self.ended: dict[str, asyncio.Future[None]] = {}

    def deltas(self, deltas: Sequence[tuple[str, TokenDelta]]) -> None:
        """See `DispatcherSink`."""
        for request_id, delta in deltas:
            self.token_ids[request_id].extend(delta.token_ids)
            if delta.finish_reason is not None and not self.ended[request_id].done():
                self.ended[request_id].set_result(None)

    def failed(self, request_id: str, error: ServeError) -> None:
        """See `DispatcherSink`."""
        if not self.ended[request_id].done():
            self.ended[request_id].set_exception(error)


@dataclass
class LocalTransport:
    """`attempts.Transport` to replicas of this process: those in `live`, which others add and take away."""

    ingress_id: str
    live: dict[str, EngineReplica]

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        """See `Transport`."""
        return [decode_info(await replica.info()) for replica in list(self.live.values())], True

    async def follow(self, replica_id: str, on_frame: OnFrame) -> None:
        """See `Transport`."""
        async with contextlib.aclosing(self._replica(replica_id).frames(replica_id, self.ingress_id)) as frames:
            async for data in frames:
                self._replica(replica_id)
                on_frame(decode_frame(data))

    async def fetch_partial_output(self, resume_key: str) -> list[int]:  # noqa: ARG002  # nothing is kept
        """See `Transport`."""
        return []

    async def wake(self) -> None:
        """See `Transport`."""
        raise ReplicaLost("nothing starts engines here")

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        """See `Transport`."""
        for replica in list(self.live.values()):
            await replica.share_quarantine(msgspec.msgpack.encode(quarantine))

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        """See `Transport`."""
        await self._replica(replica_id).run_attempt(replica_id, encode_request(attempt))

    def _replica(self, replica_id: str) -> EngineReplica:
        if replica_id not in self.live:
            raise ReplicaDied("killed")
        return self.live[replica_id]


@dataclass
class Fleet:
    """Engines and ingresses. Use as an async context manager. Requests go to the ingresses in turn."""

    size: FleetSize
    scale: float
    policy: RoutingPolicy
    max_queued_requests: int = UNBOUNDED
    live: dict[str, EngineReplica] = field(default_factory=dict)
    _engines: dict[str, FakeEngine] = field(default_factory=dict)
    _dispatchers: list[Dispatcher] = field(default_factory=list)
    _sink: Sink = field(default_factory=Sink)
    _closing: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _submitted: int = 0

    async def __aenter__(self) -> Self:
        for _ in range(self.size.replicas):
            await self.add_replica()
        limits = DispatcherLimits(request_deadline_s=3600.0)
        for number in range(INGRESSES):
            name = f"ingress-{number}"
            dispatcher = Dispatcher(
                LocalTransport(name, self.live),
                name,
                limits,
                self._sink,
                Admission(max_queued_requests=self.max_queued_requests),
                choice=ReplicaChoice(self.policy),
            )
            self._dispatchers.append(await self._closing.enter_async_context(dispatcher))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    async def add_replica(self) -> None:
        """Start one more engine."""
        name = f"engine-{len(self._engines)}"

        def build(sink: StepSink) -> FakeEngine:
            self._engines[name] = FakeEngine(self.size.engine(self.scale), sink)
            return self._engines[name]

        replica = EngineReplica(
            name,
            build,
            WatchdogLimits(),
            max_queued_requests=self.max_queued_requests,
            clock=asyncio.get_running_loop().time,
        )
        self._closing.push_async_callback(replica.stop)
        await replica.start()
        self.live[name] = replica

    def kill_replica(self) -> str:
        """End an engine as a crash does; returns its name."""
        name = next(iter(self.live))
        del self.live[name]
        self._engines[name].fail("killed")
        return name

    def empty_caches(self) -> None:
        """Every engine loses what it has cached and does not use."""
        for name in self.live:
            self._engines[name].reset_prefix_cache()

    async def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        session: str | None,
        client: str = "",
        share: Share = DEFAULT_SHARE,
    ) -> Answer:
        """Run one request to its end. Raises `ServeError`."""
        loop = asyncio.get_running_loop()
        self._submitted += 1
        request_id = f"r{self._submitted}"
        dispatcher = self._dispatchers[self._submitted % INGRESSES]
        rank = int(share.service_class)
        dispatcher.check_room(1, Holder(client, rank, share.weight))
        self._sink.token_ids[request_id] = []
        ended = self._sink.ended[request_id] = loop.create_future()
        trace = RequestTrace()
        spec = RequestSpec(
            request_id,
            encode_tokens(prompt),
            max_tokens,
            0,
            True,
            [],
            0,
            [],
            client=client,
            session=session or "",
            rank=rank,
            weight=share.weight,
        )
        dispatcher.submit(SubmittedRequest(spec, trace, prompt_pages(prompt)))
        try:
            await ended
        finally:
            token_ids = self._sink.token_ids.pop(request_id)
            del self._sink.ended[request_id]
        return Answer(trace, token_ids, loop.time())
