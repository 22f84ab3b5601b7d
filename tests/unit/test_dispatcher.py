"""The fleet, with replicas that live in this process: every way an attempt can end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from msgspec import structs

from serve_app.protocol.errors import (
    AttemptRefused,
    CutOff,
    EngineDead,
    EngineDeadBeside,
    EngineDeadByRequest,
    InQuarantine,
    NoReplica,
    PoisonRequest,
    ReplicaDied,
    ReplicaLost,
    RequestRefused,
    ServeError,
    WrongReplica,
)
from serve_app.protocol.messages import (
    WIRE_VERSION,
    AttemptRequest,
    Frame,
    ReplicaInfo,
    ReplicaLoad,
    RequestSpec,
    TokenDelta,
)
from serve_app.router.attempts import DispatcherLimits
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.request_context import RequestTrace, SubmittedRequest

STOP = 0
IDLE = ReplicaLoad(0, 8, 0.0, draining=False)


class LocalReplica:
    """A replica whose tokens the test hands out. The token at position p of a request is `prompt[0] + p`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames: asyncio.Queue[Frame | Exception] = asyncio.Queue()
        self.sequence = 0
        self.running: dict[str, AttemptRequest] = {}
        self.ends: dict[str, asyncio.Future[None]] = {}
        self.started: asyncio.Queue[AttemptRequest] = asyncio.Queue()
        self.aborted: asyncio.Queue[str] = asyncio.Queue()

    def send(self, *deltas: TokenDelta) -> None:
        self.frames.put_nowait(Frame(self.name, self.sequence, IDLE, list(deltas)))
        self.sequence += 1

    def emit(self, attempt: AttemptRequest, at: int, count: int = 1, *, last: bool = False) -> None:
        tokens = [attempt.spec.prompt_token_ids[0] + at + offset for offset in range(count)]
        self.send(TokenDelta(attempt.attempt_id, at, tokens, STOP if last else None))

    def end(self, attempt: AttemptRequest, error: Exception | None = None) -> None:
        end = self.ends[attempt.attempt_id]
        if error is None:
            end.set_result(None)
        else:
            end.set_exception(error)

    def die(self, error: Exception | None = None) -> None:
        error = error or ReplicaDied("killed")
        for end in self.ends.values():
            if not end.done():
                end.set_exception(error)
        self.frames.put_nowait(error)


class LocalTransport:
    def __init__(self, *replicas: LocalReplica) -> None:
        self.live = {replica.name: replica for replica in replicas}
        self.listed: set[str] | None = None
        self.left: dict[str, list[int]] = {}
        self.quarantine: dict[str, float] = {}

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        self.quarantine.update(quarantine)

    async def fetch_partial_output(self, resume_key: str) -> list[int]:
        return self.left.get(resume_key, [])

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        names = self.live if self.listed is None else self.listed
        return [ReplicaInfo(WIRE_VERSION, name, IDLE, quarantine=self.quarantine) for name in names], True

    async def frames(self, replica_id: str) -> AsyncGenerator[Frame, None]:
        replica = self.live[replica_id]
        replica.send()
        while True:
            item = await replica.frames.get()
            if isinstance(item, Exception):
                raise item
            yield item

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        replica = self.live[replica_id]
        replica.ends[attempt.attempt_id] = asyncio.get_running_loop().create_future()
        replica.running[attempt.attempt_id] = attempt
        replica.started.put_nowait(attempt)
        try:
            await replica.ends[attempt.attempt_id]
        except asyncio.CancelledError:
            replica.aborted.put_nowait(attempt.attempt_id)
            raise
        finally:
            del replica.running[attempt.attempt_id]


class Results:
    """What the fleet delivered, by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.errors: dict[str, ServeError] = {}
        self.changed = asyncio.Event()
        self.finished: set[str] = set()

    def deltas(self, deltas: Sequence[tuple[str, TokenDelta]]) -> None:
        for request_id, delta in deltas:
            self.tokens.setdefault(request_id, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                self.finished.add(request_id)
        self.changed.set()

    def failed(self, request_id: str, error: ServeError) -> None:
        self.errors[request_id] = error
        self.changed.set()

    async def until_over(self, request_id: str) -> None:
        while request_id not in self.finished and request_id not in self.errors:
            self.changed.clear()
            await self.changed.wait()

    async def until_tokens(self, request_id: str, count: int) -> None:
        while len(self.tokens.get(request_id, [])) < count:
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def flying(transport: LocalTransport, deadline_s: float = 5.0) -> AsyncIterator[tuple[Dispatcher, Results]]:
    results = Results()
    async with Dispatcher(transport, "ingress", DispatcherLimits(request_deadline_s=deadline_s), results) as fleet:
        yield fleet, results


def request(request_id: str = "r", first: int = 100, max_tokens: int = 8) -> SubmittedRequest:
    spec = RequestSpec(request_id, [first], max_tokens, 0, False, [], 0, [b""])
    return SubmittedRequest(spec, RequestTrace())


async def turns(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds. What it waits for takes turns of the loop, not time."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for: the fleet does not say when it idles
            await asyncio.sleep(0)


async def until_landed(fleet: Dispatcher) -> None:
    await turns(lambda: fleet.in_flight == 0)


async def test_tokens_come_once_and_in_order() -> None:
    replica = LocalReplica("a")
    async with flying(LocalTransport(replica)) as (fleet, results):
        fleet.submit(request())
        attempt = await replica.started.get()
        replica.emit(attempt, 0, 3)
        replica.emit(attempt, 3, 2, last=True)
        replica.end(attempt)
        await results.until_over("r")
        await until_landed(fleet)
    assert results.tokens["r"] == [100, 101, 102, 103, 104]


async def test_what_a_broken_stream_had_said_comes_first_and_goes_on() -> None:
    replica = LocalReplica("a")
    transport = LocalTransport(replica)
    transport.left["theirs"] = [100, 101, 102]
    async with flying(transport) as (fleet, results):
        asked = request()
        asked = replace(asked, spec=structs.replace(asked.spec, resume_key="mine"), resumes_key="theirs")
        fleet.submit(asked)
        attempt = await replica.started.get()
        assert (attempt.emitted_token_ids, attempt.spec.resume_key) == ([100, 101, 102], "mine")
        replica.emit(attempt, 3, 2, last=True)
        replica.end(attempt)
        await results.until_over("r")
    assert results.tokens["r"] == [100, 101, 102, 103, 104]
    assert (asked.trace.resumed_tokens, asked.trace.migrations) == (3, 0)


async def test_a_killed_replica_is_not_noticed() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    async with flying(transport) as (fleet, results):
        asked = request()
        fleet.submit(asked)
        attempt, replica, other = await whoever_starts(first, second)
        replica.emit(attempt, 0, 3)
        await results.until_tokens("r", 3)
        del transport.live[replica.name]
        replica.die()
        resumed = await other.started.get()
        assert resumed.emitted_token_ids == [100, 101, 102]
        assert resumed.spec.max_tokens == attempt.spec.max_tokens
        other.emit(resumed, 3, 2, last=True)
        other.end(resumed)
        await results.until_over("r")
        await until_landed(fleet)
    assert results.tokens["r"] == [100, 101, 102, 103, 104]
    assert asked.trace.migrations == 1
    assert asked.trace.replicas == [replica.name, other.name]


async def whoever_starts(a: LocalReplica, b: LocalReplica) -> tuple[AttemptRequest, LocalReplica, LocalReplica]:
    waits = {asyncio.create_task(a.started.get()): (a, b), asyncio.create_task(b.started.get()): (b, a)}
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    task = done.pop()
    return task.result(), *waits[task]


@pytest.mark.parametrize("error", [EngineDead("out of memory"), ReplicaLost("connection reset")])
async def test_an_attempt_that_fails_alone_goes_on_too(error: Exception) -> None:
    replica = LocalReplica("a")
    async with flying(LocalTransport(replica)) as (fleet, results):
        fleet.submit(request())
        attempt = await replica.started.get()
        replica.emit(attempt, 0, 2)
        await results.until_tokens("r", 2)
        replica.end(attempt, error)
        resumed = await replica.started.get()
        replica.emit(resumed, 2, 1, last=True)
        replica.end(resumed)
        await results.until_over("r")
    assert results.tokens["r"] == [100, 101, 102]


async def test_doubled_tokens_are_caught_and_never_delivered() -> None:
    replica = LocalReplica("a")
    async with flying(LocalTransport(replica)) as (fleet, results):
        fleet.submit(request())
        attempt = await replica.started.get()
        replica.emit(attempt, 0, 2)
        replica.emit(attempt, 1, 2)
        resumed = await replica.started.get()
        assert resumed.emitted_token_ids == [100, 101]
        replica.emit(attempt, 2, 5)  # The attempt that was given up has nothing to say any more.
        replica.emit(resumed, 2, 1, last=True)
        replica.end(resumed)
        await results.until_over("r")
    assert results.tokens["r"] == [100, 101, 102]


async def test_a_replica_that_dies_right_after_the_last_token_changes_nothing() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    async with flying(LocalTransport(first, second)) as (fleet, results):
        asked = request()
        fleet.submit(asked)
        attempt, replica, other = await whoever_starts(first, second)
        replica.emit(attempt, 0, 3, last=True)
        replica.die()
        await results.until_over("r")
        await until_landed(fleet)
        assert other.started.empty()
    assert results.tokens["r"] == [100, 101, 102]
    assert asked.trace.migrations == 0


@pytest.mark.parametrize("error", [EngineDead("crash"), ReplicaDied("killed")])
async def test_a_request_that_takes_two_replicas_with_it_is_stopped(error: Exception) -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    async with flying(transport) as (fleet, results):
        fleet.submit(request())
        _, replica, other = await whoever_starts(first, second)
        del transport.live[replica.name]
        replica.die(error)
        await other.started.get()
        del transport.live[other.name]
        other.die(error)
        await results.until_over("r")
    assert isinstance(results.errors["r"], PoisonRequest)


async def test_a_request_that_a_death_is_tied_to_gets_no_second_replica_nor_does_its_client() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    async with flying(transport) as (fleet, results):
        fleet.submit(replace(request(), client="mallory"))
        _, replica, other = await whoever_starts(first, second)
        del transport.live[replica.name]
        replica.die(EngineDeadByRequest("illegal memory access"))
        await results.until_over("r")
        await turns(lambda: [one.replica_id for one in fleet.replicas_up()] == [other.name])
        fleet.submit(replace(request("again"), client="alice"))
        fleet.submit(replace(request("another", first=7), client="mallory"))
        await results.until_over("again")
        await results.until_over("another")
        assert other.started.empty()
        fleet.submit(replace(request("innocent", first=9), client="alice"))
        assert (await other.started.get()).spec.request_id == "innocent"
    assert isinstance(results.errors["r"], PoisonRequest)
    assert isinstance(results.errors["again"], PoisonRequest)
    assert isinstance(results.errors["another"], InQuarantine)


async def test_what_one_ingress_holds_against_a_client_every_other_one_does() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    async with flying(transport) as (fleet, results):
        fleet.submit(replace(request(), client="mallory"))
        _, replica, _ = await whoever_starts(first, second)
        del transport.live[replica.name]
        replica.die(EngineDeadByRequest("illegal memory access"))
        await results.until_over("r")
        await turns(lambda: bool(transport.quarantine))
    third = LocalReplica("c")
    others = LocalTransport(third)
    others.quarantine = transport.quarantine
    async with flying(others) as (fleet, results):
        await turns(lambda: bool(fleet.replicas_up()))
        fleet.submit(replace(request("again"), client="alice"))
        fleet.submit(replace(request("another", first=7), client="mallory"))
        await results.until_over("again")
        await results.until_over("another")
        assert third.started.empty()
    assert isinstance(results.errors["again"], PoisonRequest)
    assert isinstance(results.errors["another"], InQuarantine)


async def test_a_stream_beside_a_poisonous_request_goes_on() -> None:
    replicas = [LocalReplica(name) for name in "abc"]
    transport = LocalTransport(*replicas)
    async with flying(transport) as (fleet, results):
        fleet.submit(request())
        for turn in range(3):
            await turns(lambda: any(not one.started.empty() for one in replicas))
            replica = next(one for one in replicas if not one.started.empty())
            attempt = replica.started.get_nowait()
            replica.emit(attempt, turn, last=turn == 2)
            if turn < 2:
                await results.until_tokens("r", turn + 1)
                del transport.live[replica.name]
                replica.die(EngineDeadBeside("illegal memory access"))
        await results.until_over("r")
    assert results.tokens["r"] == [100, 101, 102]


async def test_being_cut_off_is_no_proof_of_death_but_not_for_ever() -> None:
    replica = LocalReplica("a")
    results = Results()
    limits = DispatcherLimits(request_deadline_s=10, max_cut_attempts=3)
    async with Dispatcher(LocalTransport(replica), "ingress", limits, results) as fleet:
        fleet.submit(request())
        for _ in range(2):
            replica.end(await replica.started.get(), ReplicaLost("no route"))
        attempt = await replica.started.get()
        replica.emit(attempt, 0)
        await results.until_tokens("r", 1)  # it gets on: what was before does not count any more
        replica.end(attempt, ReplicaLost("no route"))
        for _ in range(2):
            replica.end(await replica.started.get(), ReplicaLost("no route"))
        await results.until_over("r")
    assert isinstance(results.errors["r"], CutOff)
    assert results.errors["r"].retry_after_s is not None


async def test_replicas_that_fall_silent_for_good_one_after_the_other_are_not_all_given_to_one_request() -> None:
    replicas = [LocalReplica(name) for name in "abc"]
    transport, results = LocalTransport(*replicas), Results()
    limits = DispatcherLimits(request_deadline_s=10, max_gone_replicas=2)
    async with Dispatcher(transport, "ingress", limits, results) as fleet:
        fleet.submit(request())
        for _ in range(2):
            await turns(lambda: any(replica.running for replica in transport.live.values()))
            silent = next(replica for replica in replicas if replica.running)
            del transport.live[silent.name]
            silent.die(ReplicaLost("no route"))
            await turns(lambda one=silent: not one.running)  # type: ignore[misc]
        await results.until_over("r")
    assert isinstance(results.errors["r"], CutOff)


async def test_a_broken_connection_to_a_replica_that_serves_again_was_no_death() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    async with flying(transport) as (fleet, results):
        fleet.submit(request())
        attempt, replica, other = await whoever_starts(first, second)
        replica.end(attempt, ReplicaDied("unavailable"))
        await other.started.get()
        await turns(lambda: replica.name in {facts.replica_id for facts in fleet.replicas_up()})
        del transport.live[other.name]
        other.die()
        again = await replica.started.get()
        replica.emit(again, 0, last=True)
        replica.end(again)
        await results.until_over("r")
    assert results.tokens["r"] == [100]


async def test_what_serve_ends_after_it_was_told_to_go_has_not_died_of_a_request() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    results = Results()
    async with Dispatcher(transport, "ingress", DispatcherLimits(request_deadline_s=10), results) as fleet:
        fleet.submit(request())
        _, going, other = await whoever_starts(first, second)
        transport.listed = {other.name}
        await turns(lambda: going.name not in {facts.replica_id for facts in fleet.replicas_up()})
        going.die()
        again = await other.started.get()
        other.emit(again, 0, last=True)
        other.end(again)
        await results.until_over("r")
    assert results.tokens["r"] == [100]


async def test_a_request_that_gets_nowhere_ends_at_its_deadline_and_is_not_offered_round_in_a_circle() -> None:
    replica = LocalReplica("a")
    refused = 0

    async def refuses() -> None:
        nonlocal refused
        while True:
            replica.end(await replica.started.get(), WrongReplica("not now"))
            refused += 1

    async with flying(LocalTransport(replica), deadline_s=1.2) as (fleet, results):
        refusing = asyncio.create_task(refuses())
        fleet.submit(request())
        await results.until_over("r")
        refusing.cancel()
    assert isinstance(results.errors["r"], NoReplica)
    assert 1 <= refused <= 3


async def test_a_fault_of_ours_does_not_leave_the_client_waiting() -> None:
    replica = LocalReplica("a")
    async with flying(LocalTransport(replica)) as (fleet, results):
        fleet.submit(request())
        replica.end(await replica.started.get(), ValueError("a bug"))
        await results.until_over("r")
    assert "failed" in str(results.errors["r"])


async def test_landing_elsewhere_is_nobodys_death() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    async with flying(LocalTransport(first, second)) as (fleet, results):
        fleet.submit(request())
        attempt, replica, other = await whoever_starts(first, second)
        replica.end(attempt, WrongReplica("draining"))
        again = await other.started.get()
        other.emit(again, 0, 1, last=True)
        other.end(again)
        await results.until_over("r")
    assert results.tokens["r"] == [100]


async def test_what_the_engine_refuses_is_not_tried_again() -> None:
    replica = LocalReplica("a")
    async with flying(LocalTransport(replica)) as (fleet, results):
        fleet.submit(request())
        replica.end(await replica.started.get(), AttemptRefused("prompt too long"))
        await results.until_over("r")
        assert replica.started.empty()
    assert isinstance(results.errors["r"], RequestRefused)
    assert "prompt too long" in str(results.errors["r"])


async def test_cancelling_aborts_on_the_replica() -> None:
    replica = LocalReplica("a")
    async with flying(LocalTransport(replica)) as (fleet, _results):
        fleet.submit(request())
        attempt = await replica.started.get()
        fleet.cancel("r")
        assert await replica.aborted.get() == attempt.attempt_id
        await until_landed(fleet)
        assert not replica.running


async def test_without_a_replica_a_request_waits_and_then_is_told() -> None:
    async with flying(LocalTransport(), deadline_s=0.05) as (fleet, results):
        fleet.submit(request())
        await results.until_over("r")
    error = results.errors["r"]
    assert isinstance(error, NoReplica)
    assert error.retry_after_s is not None


async def test_a_replica_that_comes_late_serves_who_waited() -> None:
    transport = LocalTransport()
    replica = LocalReplica("late")
    async with flying(transport) as (fleet, results):
        fleet.submit(request())
        transport.live["late"] = replica
        attempt = await replica.started.get()
        replica.emit(attempt, 0, 1, last=True)
        replica.end(attempt)
        await results.until_over("r")
    assert results.tokens["r"] == [100]


async def test_a_draining_replica_finishes_what_it_has_and_gets_nothing_new() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    async with flying(transport) as (fleet, results):
        fleet.submit(request())
        attempt, draining, other = await whoever_starts(first, second)
        transport.listed = {other.name}
        await turns(lambda: draining.name not in {facts.replica_id for facts in fleet.replicas_up()})
        fleet.submit(request("new", first=200))
        fresh = await other.started.get()
        other.emit(fresh, 0, 1, last=True)
        other.end(fresh)
        draining.emit(attempt, 0, 2, last=True)
        draining.end(attempt)
        await results.until_over("r")
        await results.until_over("new")
    assert results.tokens == {"r": [100, 101], "new": [200]}
    assert draining.started.empty()


async def test_a_silent_replica_is_left() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    results = Results()
    limits = DispatcherLimits(request_deadline_s=10, connection_silence_s=1.5)
    async with Dispatcher(transport, "ingress", limits, results) as fleet:
        fleet.submit(request())
        attempt, silent, other = await whoever_starts(first, second)
        silent.emit(attempt, 0, 2)
        await results.until_tokens("r", 2)
        beat = asyncio.create_task(beats(other))
        resumed = await other.started.get()
        assert resumed.emitted_token_ids == [100, 101]
        assert await silent.aborted.get() == attempt.attempt_id
        other.emit(resumed, 2, 1, last=True)
        other.end(resumed)
        await results.until_over("r")
        beat.cancel()
    assert results.tokens["r"] == [100, 101, 102]


async def beats(replica: LocalReplica) -> None:
    while True:
        replica.send()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.Event().wait()


async def test_what_a_drain_does_not_finish_moves_and_nobody_has_died() -> None:
    first, second = LocalReplica("a"), LocalReplica("b")
    transport = LocalTransport(first, second)
    results = Results()
    asked = request()
    limits = DispatcherLimits(request_deadline_s=10, drain_timeout_s=0)
    async with Dispatcher(transport, "ingress", limits, results) as fleet:
        fleet.submit(asked)
        attempt, draining, other = await whoever_starts(first, second)
        draining.emit(attempt, 0, 2)
        await results.until_tokens("r", 2)
        transport.listed = {other.name}
        moved = await other.started.get()
        assert await draining.aborted.get() == attempt.attempt_id
        assert moved.emitted_token_ids == [100, 101]
        other.emit(moved, 2, 1, last=True)
        other.end(moved)
        await results.until_over("r")
    assert results.tokens["r"] == [100, 101, 102]
    assert asked.trace.replicas == [draining.name, other.name]


async def test_a_drain_without_another_replica_moves_nothing() -> None:
    only = LocalReplica("a")
    transport = LocalTransport(only)
    results = Results()
    async with Dispatcher(
        transport, "ingress", DispatcherLimits(request_deadline_s=10, drain_timeout_s=0), results
    ) as fleet:
        fleet.submit(request())
        attempt = await only.started.get()
        transport.listed = set()
        await turns(lambda: not fleet.replicas_up())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(only.aborted.get(), 1.5)
        only.emit(attempt, 0, 1, last=True)
        only.end(attempt)
        await results.until_over("r")
    assert results.tokens["r"] == [100]
