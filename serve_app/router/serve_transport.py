"""The way from an ingress to the engine replicas, over Ray Serve handles.

Serve routes a call to whichever replica its `RequestRouter` picks; the fleet has already decided. So every call carries
its target, `TargetRouter` sends it there, and the replica checks: a call for a replica that Serve no longer routes to
comes to another replica and back as `WrongReplica`.

Attempts and frames go by a data channel where there is one (`protocol/data_channel.py`); Serve's calls are the way
to find it, to keep the replica, and to go where there is none.

The list of replicas comes from `handle.broadcast`, Serve's public way to reach every replica that takes new work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
import msgspec
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve_app.protocol.data_channel import DataChannel
from serve_app.protocol.errors import AttemptRefused, EngineDead, ReplicaDied, ReplicaFull, ReplicaLost, WrongReplica
from serve_app.protocol.messages import (
    AttemptRequest,
    DataChannelAddress,
    Frame,
    ReplicaInfo,
    decode_frame,
    decode_info,
    encode_request,
)

logger = logging.getLogger(__name__)

LIST_TIMEOUT_S = 2.0
"""A replica that does not answer in this time is busy or dead; the list is then incomplete, not wrong. While one
hangs, a new one is found this much later."""

END_REASON_S = 1.0
"""How much later than the data channel Serve's call to a dead replica may end. The request that ran there waits so
long."""

PLAIN = {"request_serialization": "pickle", "response_serialization": "pickle"}
"""What crosses is bytes and errors; Serve's default, which can carry functions too, takes several times as long."""

OUR_ERRORS = (WrongReplica, ReplicaFull, AttemptRefused, EngineDead)

CALL_FAILED = (RayError, RayServeException, grpc.RpcError)
"""How a call ends that the replica did not answer. Serve passes on what gRPC says, other than UNAVAILABLE, as it is."""

ACTOR_GONE = (ActorDiedError, ActorUnavailableError)
"""Nothing listens there any more: to Serve's gRPC a killed process is unavailable, it does not ask Ray about it."""


AnyStream = AsyncIterator[Any]
"""Serve's `DeploymentResponseGenerator`."""


class TargetRouter(RequestRouter):  # type: ignore[misc]  # Ray is not read by mypy
    """Sends a call to the replica that its `target` argument names; calls without one, or for a lost one, anywhere."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank with the target in it, or all candidates when it is not among them (the replica then refuses)."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        target = pending_request.args[0] if pending_request.args else None
        matching = [replica for replica in candidate_replicas if replica.replica_id.unique_id == target]
        return [matching or candidate_replicas]


class ServeTransport:
    """`fleet.Transport` over a handle to the engine deployment. Configured once: `.options()` makes a new handle each
    time."""

    def __init__(self, engine: DeploymentHandle[Any], ingress_id: str) -> None:
        self._engine = engine
        self._run = engine.options(method_name="run_attempt", **PLAIN)
        self._frames = engine.options(method_name="frames", stream=True, **PLAIN)
        self._lease = engine.options(method_name="lease", stream=True, **PLAIN)
        self._ingress_id = ingress_id
        self._addresses: dict[str, DataChannelAddress] = {}
        self._channels: dict[str, DataChannel] = {}

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        """See `fleet.Transport`."""
        try:
            answers = await self._engine.broadcast("info").results_async(
                timeout_s=LIST_TIMEOUT_S, return_exceptions=True
            )
        except (*CALL_FAILED, TimeoutError) as error:
            raise ReplicaLost(f"no replica answers: {error}") from error
        infos = [info for answer in answers if (info := _readable_info(answer)) is not None]
        self._addresses = {info.replica_id: info.data_channel for info in infos if info.data_channel is not None}
        return infos, len(infos) == len(answers)

    async def frames(self, replica_id: str) -> AsyncGenerator[Frame, None]:
        """See `Transport`: by a data channel where one is offered and can be opened, else by Serve."""
        address = self._addresses.get(replica_id)
        if address is not None:
            lease = self._lease.remote(replica_id)
            try:
                line = await self._open_line(replica_id, address, lease)
                if line is not None:
                    async with contextlib.aclosing(self._by_line(replica_id, line, lease)) as frames:
                        async for frame in frames:
                            yield frame
            finally:
                lease.cancel()
        async with contextlib.aclosing(self._by_serve(replica_id)) as frames:
            async for frame in frames:
                yield frame

    async def _open_line(self, replica_id: str, address: DataChannelAddress, lease: AnyStream) -> DataChannel | None:
        """The channel, once Serve has said that this is the replica; None where there is no way for it."""
        try:
            await anext(lease)
        except (*CALL_FAILED, *OUR_ERRORS) as error:
            raise as_replica_error(error) from error
        try:
            return await DataChannel.open(address, replica_id, self._ingress_id)
        except (OSError, TimeoutError) as error:
            where = f"{address.host}:{address.port}"
            logger.warning("no line: tokens go by Serve, which costs more", extra={"to": where, "error": repr(error)})
            return None

    async def _by_line(self, replica_id: str, line: DataChannel, lease: AnyStream) -> AsyncGenerator[Frame, None]:
        """Frames until line or lease breaks; then raises what became of the replica."""
        self._channels[replica_id] = line
        reason: Exception = ReplicaLost("the connection is closed")
        verdict = asyncio.create_task(_how_it_ended(lease), name=f"lease of {replica_id}")
        # A node that is gone sends nothing on the channel; Ray may know of it sooner than silence tells.
        verdict.add_done_callback(lambda _: line.hang_up())
        try:
            async with contextlib.aclosing(line.frames()) as frames:
                async for frame in frames:
                    yield frame
            await asyncio.wait({verdict}, timeout=END_REASON_S)
            reason = verdict.result() if verdict.done() else ReplicaLost("the data channel broke")
            raise reason
        finally:
            verdict.cancel()
            if self._channels.get(replica_id) is line:
                del self._channels[replica_id]
            line.close(reason)

    async def _by_serve(self, replica_id: str) -> AsyncGenerator[Frame, None]:
        stream = self._frames.remote(replica_id, self._ingress_id)
        try:
            async for data in stream:
                yield decode_frame(data)
        except (*CALL_FAILED, *OUR_ERRORS) as error:
            raise as_replica_error(error) from error
        finally:
            stream.cancel()

    async def fetch_partial_output(self, resume_key: str) -> list[int]:
        """See `fleet.Transport`."""
        try:
            answers = await self._engine.broadcast("fetch_partial_output", resume_key).results_async(
                timeout_s=LIST_TIMEOUT_S, return_exceptions=True
            )
        except (*CALL_FAILED, TimeoutError) as error:
            logger.warning("cannot look for a broken stream", extra={"error": str(error)})
            return []
        found = [msgspec.msgpack.decode(one, type=list[int]) for one in answers if isinstance(one, bytes)]
        return max(found, key=len, default=[])

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        """See `fleet.Transport`. A replica that cannot be told is not asked again: its fellows know."""
        told = msgspec.msgpack.encode(quarantine)
        try:
            await self._engine.broadcast("share_quarantine", told).results_async(
                timeout_s=LIST_TIMEOUT_S, return_exceptions=True
            )
        except (*CALL_FAILED, TimeoutError) as error:
            logger.warning("no replica could be told whom to refuse", extra={"error": str(error)})

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        """See `fleet.Transport`."""
        line = self._channels.get(replica_id)
        if line is not None:
            await line.run(encode_request(attempt))
            return
        response = self._run.remote(replica_id, encode_request(attempt))
        try:
            await response
        except asyncio.CancelledError:
            # Serve cancels a call with the request that made it, but a stop string or a given-up attempt ends one
            # inside a request that goes on.
            response.cancel()
            raise
        except (*CALL_FAILED, *OUR_ERRORS) as error:
            raise as_replica_error(error) from error


def _readable_info(answer: object) -> ReplicaInfo | None:
    """The info in a replica's answer; None for an error, and for bytes that are no info of any version."""
    if not isinstance(answer, bytes):
        return None
    try:
        return decode_info(answer)
    except msgspec.DecodeError as error:
        logger.warning("cannot read the info of a replica", extra={"error": str(error)})
        return None


async def _how_it_ended(lease: AnyStream) -> Exception:
    """What became of a replica, as soon as Serve says that the call there has ended."""
    try:
        await anext(lease)
    except (*CALL_FAILED, *OUR_ERRORS) as error:
        return as_replica_error(error)
    except StopAsyncIteration:
        pass
    return ReplicaLost("the replica ended the connection")


def as_replica_error(error: Exception) -> Exception:
    """What an error of a Serve call means to the fleet: ours as it is, a replica that is gone, or one out of reach."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, OUR_ERRORS):
        return type(cause)(str(cause))
    kind = ReplicaDied if isinstance(cause, ACTOR_GONE) else ReplicaLost
    return kind(f"{type(cause).__name__}: {cause}")
