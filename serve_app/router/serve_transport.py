"""The `Transport` over Ray Serve handles and data channels.

Serve routes a call to whichever replica its `RequestRouter` picks, but the dispatcher has already chosen one. So every
call carries its target, `TargetRouter` sends it there, and the replica checks: a call for a replica that Serve no
longer routes to reaches another replica, which answers `WrongReplica`.

Attempts and frames go by a data channel where there is one (`protocol/data_channel.py`). Serve's calls find it, keep
the replica alive, and replace the channel where there is none.

The list of replicas comes from `handle.broadcast`, Serve's public way to reach every replica that takes new work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NoReturn

import grpc
import msgspec
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve_app.protocol.data_channel import DataChannel
from serve_app.protocol.errors import (
    AttemptRefused,
    EngineCannotStart,
    EngineDead,
    ImagesMissing,
    Preempted,
    ReplicaDied,
    ReplicaFull,
    ReplicaLost,
    WrongReplica,
)
from serve_app.protocol.messages import (
    AttemptRequest,
    DataChannelAddress,
    OnFrame,
    ReplicaInfo,
    decode_frame,
    decode_info,
    encode_request,
)
from serve_app.protocol.paced_reads import PacedReads

logger = logging.getLogger(__name__)

LIST_TIMEOUT_S = 2.0
"""A replica that does not answer in this time is busy or dead, and the list is marked incomplete. While one hangs, a
new one is found this much later."""

END_REASON_S = 1.0
"""How much later than the data channel Serve's call to a dead replica may end. The attempts on it wait so long for the
reason."""

PLAIN = {"request_serialization": "pickle", "response_serialization": "pickle"}
"""Only bytes and errors cross. Serve's default serializer can also carry functions, and takes several times as long."""

OUR_ERRORS = (WrongReplica, ReplicaFull, Preempted, ImagesMissing, AttemptRefused, EngineDead)

CALL_FAILED = (RayError, RayServeException, grpc.RpcError)
"""How a call ends without the replica's answer. Serve passes gRPC's errors other than UNAVAILABLE on as they are."""

ACTOR_GONE = (ActorDiedError, ActorUnavailableError)
"""The replica's process is gone: to Serve's gRPC a killed process is unavailable; it does not ask Ray."""


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
    """`Transport` over a handle to the engine deployment. Configured once: `.options()` makes a new handle each time.
    `may_sleep`: the deployment may have no replica; else that Serve lists none means that it knows none yet. `reads`
    receives the frames of all data channels; None: those of this transport by themselves."""

    def __init__(
        self,
        engine: DeploymentHandle[Any],
        ingress_id: str,
        reads: PacedReads | None = None,
        *,
        may_sleep: bool = False,
    ) -> None:
        self._engine = engine
        self._may_sleep = may_sleep
        self._info = engine.options(method_name="info", **PLAIN)
        self._run = engine.options(method_name="run_attempt", **PLAIN)
        self._frames = engine.options(method_name="frames", stream=True, **PLAIN)
        self._lease = engine.options(method_name="lease", stream=True, **PLAIN)
        self._ingress_id = ingress_id
        self._reads = reads or PacedReads()
        self._addresses: dict[str, DataChannelAddress] = {}
        self._channels: dict[str, DataChannel] = {}

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        """See `Transport`."""
        try:
            answers = await ask_all(self._engine, "info", timeout_s=LIST_TIMEOUT_S)
        except DeploymentUnavailableError as error:
            if self._may_sleep:
                return [], True
            raise ReplicaLost(f"no replica is there: {error}") from error
        except (*CALL_FAILED, TimeoutError) as error:
            raise ReplicaLost(f"no replica answers: {error}") from error
        infos = [info for answer in answers if (info := _readable_info(answer)) is not None]
        self._addresses = {info.replica_id: info.data_channel for info in infos if info.data_channel is not None}
        return infos, len(infos) == len(answers)

    async def follow(self, replica_id: str, on_frame: OnFrame) -> None:
        """See `Transport`: by a data channel where one is offered and can be opened, else by Serve."""
        address = self._addresses.get(replica_id)
        if address is not None:
            lease = self._lease.remote(replica_id)
            try:
                channel = await self._open_channel(replica_id, address, lease)
                if channel is not None:
                    await self._by_channel(replica_id, channel, lease, on_frame)
            finally:
                lease.cancel()
        await self._by_serve(replica_id, on_frame)

    async def _open_channel(self, replica_id: str, address: DataChannelAddress, lease: AnyStream) -> DataChannel | None:
        """The channel, after the lease has reached the right replica; None where it cannot be opened."""
        try:
            await anext(lease)
        except (*CALL_FAILED, *OUR_ERRORS) as error:
            raise as_replica_error(error) from error
        try:
            return await DataChannel.open(address, replica_id, self._ingress_id, self._reads)
        except (OSError, TimeoutError) as error:
            where = f"{address.host}:{address.port}"
            logger.warning(
                "no channel: tokens go by Serve, which costs more", extra={"to": where, "error": repr(error)}
            )
            return None

    async def _by_channel(self, replica_id: str, channel: DataChannel, lease: AnyStream, on_frame: OnFrame) -> NoReturn:
        """Frames until channel or lease breaks; then raises what became of the replica."""
        self._channels[replica_id] = channel
        reason: Exception = ReplicaLost("the connection is closed")
        end_reason = asyncio.create_task(_how_it_ended(lease), name=f"lease of {replica_id}")
        # A node that is gone closes no connection; Ray may notice it sooner than the silence timeout.
        end_reason.add_done_callback(lambda _: channel.disconnect())
        try:
            await channel.follow(on_frame)
            await asyncio.wait({end_reason}, timeout=END_REASON_S)
            reason = end_reason.result() if end_reason.done() else ReplicaLost("the data channel broke")
            raise reason
        finally:
            end_reason.cancel()
            if self._channels.get(replica_id) is channel:
                del self._channels[replica_id]
            channel.close(reason)

    async def _by_serve(self, replica_id: str, on_frame: OnFrame) -> None:
        stream = self._frames.remote(replica_id, self._ingress_id)
        try:
            async for data in stream:
                on_frame(decode_frame(data))
        except (*CALL_FAILED, *OUR_ERRORS) as error:
            raise as_replica_error(error) from error
        finally:
            stream.cancel()

    async def fetch_partial_output(self, resume_key: str) -> list[int]:
        """See `Transport`."""
        try:
            answers = await ask_all(self._engine, "fetch_partial_output", resume_key, timeout_s=LIST_TIMEOUT_S)
        except (*CALL_FAILED, TimeoutError) as error:
            logger.warning("cannot fetch partial outputs", extra={"error": str(error)})
            return []
        found = [msgspec.msgpack.decode(one, type=list[int]) for one in answers if isinstance(one, bytes)]
        return max(found, key=len, default=[])

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        """See `Transport`. A replica that does not answer is not asked again: the other replicas have it."""
        told = msgspec.msgpack.encode(quarantine)
        try:
            await ask_all(self._engine, "share_quarantine", told, timeout_s=LIST_TIMEOUT_S)
        except (*CALL_FAILED, TimeoutError) as error:
            logger.warning("no replica could be told of the quarantine", extra={"error": str(error)})

    async def wake(self) -> None:
        """See `Transport`: a call that waits in Serve until there is a replica."""
        response = self._info.remote()
        try:
            await response
        except asyncio.CancelledError:
            response.cancel()  # else Serve would count it as waiting
            raise
        except DeploymentUnavailableError as error:
            raise EngineCannotStart("the engine cannot start, and Serve tries no more") from error
        except CALL_FAILED as error:
            raise ReplicaLost(f"{type(error).__name__}: {error}") from error

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        """See `Transport`."""
        channel = self._channels.get(replica_id)
        if channel is not None:
            await channel.run(attempt)
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


async def ask_all(handle: DeploymentHandle[Any], method: str, *args: object, timeout_s: float) -> list[object]:
    """What each replica of a deployment answers to a call within `timeout_s`; in place of an answer, the error of the
    call, and `TimeoutError` for a replica that is silent. Raises one of `CALL_FAILED` or `TimeoutError` where none can
    be asked.

    Serve's own `results_async` gives up all answers when one replica is late.
    """
    response = handle.broadcast(method, *args)
    async with asyncio.timeout(timeout_s):
        results = await response._fetch_replica_results_async()  # noqa: SLF001  # there is no public way to each of them
    calls = [asyncio.ensure_future(result.get_async()) for result in results]
    if calls:
        _, late = await asyncio.wait(calls, timeout=timeout_s)
        for call in late:
            call.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return [_outcome(call) for call in calls]


def _outcome(call: asyncio.Future[object]) -> object:
    if call.cancelled():
        return TimeoutError("no answer in time")
    return call.exception() or call.result()


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
    """What became of a replica, as soon as Serve's call to it ends."""
    try:
        await anext(lease)
    except (*CALL_FAILED, *OUR_ERRORS) as error:
        return as_replica_error(error)
    except StopAsyncIteration:
        pass
    return ReplicaLost("the replica ended the connection")


def as_replica_error(error: Exception) -> Exception:
    """The meaning of an error of a Serve call: one of ours as it is, else a replica that died or cannot be reached."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, OUR_ERRORS):
        return type(cause)(str(cause))
    kind = ReplicaDied if isinstance(cause, ACTOR_GONE) else ReplicaLost
    return kind(f"{type(cause).__name__}: {cause}")
