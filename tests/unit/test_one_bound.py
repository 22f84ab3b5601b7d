"""One bound for the fleet, however many ingresses there are: fleets of four ingresses over the same two replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.engine.replica import EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.protocol.errors import NoReplica, QueueFull, ReplicaFull, TooManySequences
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, RequestSpec, encode_request, encode_tokens
from serve_app.router.admission import Admission
from serve_app.router.admission_control import AdmissionDecision
from serve_app.router.attempts import DispatcherLimits
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.request_context import RequestTrace, SubmittedRequest
from tests.http.harness import LocalTransport
from tests.unit.local_replicas import Results

SLOTS, WAITING = 3, 4
BOUND = 2 * (SLOTS + WAITING)


class Outcomes(Results):
    """What became of every ingress' requests."""

    def count(self, request_id: str) -> int:
        """Tokens of a request."""
        return len(self.tokens.get(request_id, []))

    async def until(self, ended: int) -> None:
        async with asyncio.timeout(60):
            while len(self.finished) + len(self.errors) < ended:
                self.changed.clear()
                await self.changed.wait()


class Counting(EngineReplica):
    """A replica that remembers the most that it has held."""

    most = 0

    async def _run(self, attempt: AttemptRequest) -> None:
        self.most = max(self.most, len(self._attempts) + 1)
        await super()._run(attempt)


@dataclass
class Site:
    """Four ingresses, two replicas."""

    fleets: list[Dispatcher]
    replicas: dict[str, Counting]
    transports: list[LocalTransport]
    outcomes: Outcomes = field(default_factory=Outcomes)

    def submit(self, count: int, name: str = "r", *, begun: bool = False, tokens: int = 5) -> None:
        """So many at each ingress, as fast as they can be sent: nobody's load is known before all are on their way."""
        for number in range(count):
            for index, fleet in enumerate(self.fleets):
                one = f"{name}-{index}-{number}"
                prompt = [len(one) + number]
                spec = RequestSpec(one, encode_tokens(prompt), tokens, 0, True, [], 0, [b""])
                fleet.submit(SubmittedRequest(spec, RequestTrace(), answer_begun=lambda: begun))


@asynccontextmanager
async def site(gap_s: float = 0.001) -> AsyncIterator[Site]:
    outcomes = Outcomes()
    replicas = {}
    async with AsyncExitStack() as stack:
        for name in ("a", "b"):
            config = FakeEngineConfig(gap_s=gap_s, max_num_seqs=SLOTS)
            replicas[name] = Counting(
                name,
                lambda sink, config=config: FakeEngine(config, sink),
                WatchdogLimits(),
                max_queued_requests=WAITING,
            )
            stack.push_async_callback(replicas[name].stop)
            await replicas[name].start()
        fleets, transports = [], []
        for index in range(4):
            transports.append(LocalTransport(f"ingress-{index}", dict(replicas)))
            fleet = Dispatcher(
                transports[-1], f"ingress-{index}", DispatcherLimits(30), outcomes, Admission(WAITING, SLOTS, 2, 4)
            )
            fleets.append(await stack.enter_async_context(fleet))
        for fleet in fleets:
            async with asyncio.timeout(10):
                while len(fleet.replicas_up()) < 2:  # noqa: ASYNC110  # it sets no event for the second
                    await asyncio.sleep(0)
        yield Site(fleets, replicas, transports, outcomes)


async def test_21_four_ingresses_together_never_have_more_in_the_fleet_than_its_bound() -> None:
    async with site(gap_s=0.01) as here:
        here.submit(20)
        await here.outcomes.until(80)
        assert [replica.most for replica in here.replicas.values()] == [SLOTS + WAITING] * 2
    assert len(here.outcomes.finished) >= BOUND  # nobody that was taken is lost
    assert len(here.outcomes.finished) + len(here.outcomes.errors) == 80
    assert all(here.outcomes.count(name) == 5 for name in here.outcomes.finished)
    for name, error in here.outcomes.errors.items():
        assert isinstance(error, QueueFull)
        assert error.retry_after_s is not None
        assert error.retry_after_s >= 1
        assert here.outcomes.count(name) == 0


async def test_an_ingress_that_has_sent_nothing_knows_that_the_fleet_is_full_and_not_of_whom() -> None:
    async with site(gap_s=1.0) as here:
        first, last = here.fleets[0], here.fleets[-1]
        here.fleets = [first]
        here.submit(BOUND)
        async with asyncio.timeout(10):
            while sum(one.load.unfinished for one in last.replicas_up()) < BOUND:  # noqa: ASYNC110  # it sets no event
                await asyncio.sleep(0)
        last.check_room(1)
        assert last.admission_decisions() == {AdmissionDecision.ADMITTED_BY_SHARE: 1}
        here.fleets = [last]
        here.submit(1, "refused")
        with pytest.raises(QueueFull):  # one is being tried
            last.check_room(1)
        await here.outcomes.until(1)
        assert isinstance(here.outcomes.errors["refused-0-0"], QueueFull)
        with pytest.raises(TooManySequences):
            last.check_room(BOUND + 1)


async def test_what_a_killed_replica_ran_is_never_refused_by_the_other() -> None:
    async with site(gap_s=0.02) as here:
        here.submit(4, tokens=20)
        engine = here.replicas["a"]._engine
        assert isinstance(engine, FakeEngine)
        await engine.first_token_sent.wait()
        engine.fail("killed")
        await here.outcomes.until(16)
    assert all(isinstance(error, QueueFull) for error in here.outcomes.errors.values())
    assert all(here.outcomes.count(name) == 0 for name in here.outcomes.errors)
    assert len(here.outcomes.finished) >= BOUND
    assert all(here.outcomes.count(name) == 20 for name in here.outcomes.finished)


async def test_who_has_an_answers_head_waits_for_room_and_is_not_refused() -> None:
    async with site(gap_s=0.002) as here:
        here.submit(10, begun=True)
        await here.outcomes.until(40)
        assert max(replica.most for replica in here.replicas.values()) == SLOTS + WAITING
    assert not here.outcomes.errors


async def test_a_replica_refuses_the_new_one_and_takes_what_one_had_before() -> None:
    async with site(gap_s=60.0) as here:
        replica = here.replicas["a"]
        running = [asyncio.create_task(replica.run_attempt("a", _attempt(f"r{number}"))) for number in range(7)]
        await asyncio.sleep(0)
        with pytest.raises(ReplicaFull):
            await replica.run_attempt("a", _attempt("new"))
        running += [asyncio.create_task(replica.run_attempt("a", _attempt(name, admitted=True))) for name in ("x", "y")]
        await asyncio.sleep(0)
        assert len(replica._attempts) == 9
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _attempt(attempt_id: str, *, admitted: bool = False) -> bytes:
    spec = RequestSpec(attempt_id, encode_tokens([1]), 8, 0, False, [], 0, [b""])
    return encode_request(AttemptRequest(WIRE_VERSION, attempt_id, "ingress-0", spec, [], admitted))


async def test_without_a_replica_each_ingress_lets_its_share_wait_for_the_first() -> None:
    outcomes = Outcomes()
    async with Dispatcher(
        LocalTransport("i"), "i", DispatcherLimits(30), outcomes, Admission(WAITING, 8, 2, 4)
    ) as fleet:
        fleet.check_room(3)  # (8 + 4) / 4
        with pytest.raises(NoReplica, match="0 requests wait for one"):
            fleet.check_room(4)
