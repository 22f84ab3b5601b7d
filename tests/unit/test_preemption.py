"""A request of a higher class takes the place of a lower one's, which loses nothing by it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from bench.routing import virtual_time
from bench.routing.fleet import Answer, Fleet, FleetSize
from serve_app.engine.preemption import Running, to_preempt
from serve_app.protocol.errors import Preempted, ReplicaFull, ReplicaLost
from serve_app.protocol.service_class import ServiceClass, Share
from serve_app.router.routing import RoutingPolicy
from tests.unit.local_replicas import local_fleet, request

BATCH, INTERACTIVE = Share(ServiceClass.BATCH), Share(ServiceClass.INTERACTIVE)
SLOTS = 4
TOKENS = 2_000
BEFORE_S = 5.0
"""Virtual seconds, in which the slots are taken and many tokens made."""

APART_S = 0.1
"""What was ended in this time waits again."""

SIZE = FleetSize(replicas=1, max_num_seqs=SLOTS)

RUNNING = st.lists(st.builds(Running, st.text("abc", min_size=1), st.integers(-1, 1), st.integers(0, 99)))


@given(st.integers(-1, 1), RUNNING)
def test_only_lower_ranks_are_preempted_and_the_least_is_lost(rank: int, running: list[Running]) -> None:
    chosen = to_preempt(rank, running)
    lower = [one for one in running if one.rank < rank]
    assert (chosen is None) == (not lower)
    if lower:
        lowest = min(one.rank for one in lower)
        fewest = min(one.computed_tokens for one in lower if one.rank == lowest)
        assert chosen in {one.attempt_id for one in lower if (one.rank, one.computed_tokens) == (lowest, fewest)}


async def batch(fleet: Fleet, number: int) -> Answer:
    return await fleet.generate([number] * 50, TOKENS, None, "batch", BATCH)


async def interactive(fleet: Fleet, number: int, tokens: int = 50) -> Answer:
    return await fleet.generate([1000 + number] * 50, tokens, None, "ann", INTERACTIVE)


async def together(others: int, size: FleetSize = SIZE) -> tuple[list[Answer], list[Answer], list[float]]:
    """Batch requests in all slots, and interactive ones that come when they have run for a while: both, and how long
    the latter waited for a token."""
    async with Fleet(size, 1.0, RoutingPolicy.COST) as fleet, asyncio.TaskGroup() as tasks:
        lower = [tasks.create_task(batch(fleet, number)) for number in range(SLOTS * size.replicas)]
        await asyncio.sleep(BEFORE_S)
        higher = [tasks.create_task(interactive(fleet, number)) for number in range(others)]
    answers = [one.result() for one in higher]
    waits_s = [(one.trace.first_token_s or 1e9) - one.trace.submitted_s for one in answers]
    return [one.result() for one in lower], answers, waits_s


def test_a_higher_class_does_not_wait_for_a_lower_one_and_the_lower_one_loses_nothing() -> None:
    undisturbed, _, _ = virtual_time.run(together(0))
    lower, _, waits_s = virtual_time.run(together(1))
    assert max(waits_s) < 1.0
    assert [one.trace.preemptions for one in lower].count(1) == 1
    assert [one.token_ids for one in lower] == [one.token_ids for one in undisturbed]
    assert not [one for one in lower if one.trace.error is not None or one.trace.migrations]


def test_each_waiting_request_ends_one_at_most_and_none_is_ended_twice() -> None:
    undisturbed, _, _ = virtual_time.run(together(0))
    lower, higher, _ = virtual_time.run(together(40))
    assert [one.trace.preemptions for one in lower] == [1] * SLOTS
    assert [one.token_ids for one in lower] == [one.token_ids for one in undisturbed]
    assert [len(one.token_ids) for one in higher] == [50] * 40
    last = max(one.ended_s for one in higher)
    assert all(one.ended_s > last for one in lower)


def test_who_waits_again_is_not_refused_where_there_is_no_more_room() -> None:
    async def run() -> tuple[list[Answer | BaseException], list[Answer | BaseException]]:
        async with Fleet(SIZE, 1.0, RoutingPolicy.COST, max_queued_requests=6) as fleet:
            lower = [asyncio.create_task(batch(fleet, number)) for number in range(SLOTS)]
            await asyncio.sleep(BEFORE_S)
            higher = []
            for number in range(14):
                higher.append(asyncio.create_task(interactive(fleet, number, TOKENS)))
                await asyncio.sleep(APART_S)
            return (
                await asyncio.gather(*lower, return_exceptions=True),
                await asyncio.gather(*higher, return_exceptions=True),
            )

    lower, higher = virtual_time.run(run())
    assert [len(one.token_ids) for one in lower if isinstance(one, Answer)] == [TOKENS] * SLOTS
    assert [one.trace.preemptions for one in lower if isinstance(one, Answer)] == [1] * SLOTS
    assert sum(isinstance(one, Answer) for one in higher) >= 6


def test_who_was_started_for_its_long_wait_keeps_its_slot() -> None:
    """Interactive requests are always more than there are slots; a batch request comes, and they go on."""

    async def run() -> Answer:
        async with Fleet(SIZE, 1.0, RoutingPolicy.COST) as fleet:

            async def flood(number: int) -> None:
                while True:
                    await interactive(fleet, number, 300)

            others = [asyncio.create_task(flood(number)) for number in range(3 * SLOTS)]
            await asyncio.sleep(BEFORE_S)
            answer = await batch(fleet, 0)
            for one in others:
                one.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            return answer

    answer = virtual_time.run(run())
    assert len(answer.token_ids) == TOKENS
    assert answer.trace.preemptions == 0


def test_nobody_without_a_token_is_preempted_but_with_its_first_one() -> None:
    async def run() -> tuple[list[Answer], list[Answer]]:
        async with Fleet(SIZE, 1.0, RoutingPolicy.COST) as fleet:
            lower = [asyncio.create_task(batch(fleet, number)) for number in range(SLOTS)]
            await asyncio.sleep(SIZE.step_s / 2)  # they have started, and nothing is computed yet
            higher = [asyncio.create_task(interactive(fleet, number)) for number in range(SLOTS)]
            return await asyncio.gather(*lower), await asyncio.gather(*higher)

    lower, higher = virtual_time.run(run())
    assert all(attempt.tokens for one in lower for attempt in one.trace.attempts)
    assert [one.trace.preemptions for one in lower] == [1] * SLOTS
    assert max((one.trace.first_token_s or 1e9) - one.trace.submitted_s for one in higher) < 0.5


def test_nobody_is_preempted_for_its_own_class() -> None:
    async def run() -> list[Answer]:
        async with Fleet(SIZE, 1.0, RoutingPolicy.COST) as fleet:
            return await asyncio.gather(*(batch(fleet, number) for number in range(3 * SLOTS)))

    assert sum(one.trace.preemptions for one in virtual_time.run(run())) == 0


async def test_a_preempted_request_goes_on_with_its_tokens_and_in_no_haste() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request(max_tokens=8))
        attempt, first, second = await fleet.first_attempt()
        first.emit(attempt, 0, 3)
        await fleet.results.until_tokens("r", 3)
        first.end(attempt, Preempted("a request of a higher class takes its place"))
        starts = [asyncio.create_task(one.started.get()) for one in (first, second)]
        done, pending = await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        for one in pending:
            one.cancel()
        again = done.pop().result()
        assert (again.emitted_token_ids, again.preempted, again.admitted) == ([100, 101, 102], True, True)
        assert fleet.names_up() == {"a", "b"}  # its replica is not taken for lost
        (first if first.running else second).finish(again, 3, 5)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == list(range(100, 108))
    assert not fleet.results.errors


async def test_what_was_preempted_once_stays_so_and_is_in_no_hurry_until_it_has_a_token() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request(max_tokens=8))
        attempt, first, _ = await fleet.first_attempt()
        first.emit(attempt, 0, 3)
        await fleet.results.until_tokens("r", 3)
        first.end(attempt, Preempted("a request of a higher class takes its place"))
        said = []
        for emits in (0, 1, 0):  # each of these is lost, too
            again, running, _ = await fleet.first_attempt()
            said.append((again.preempted, again.spec.preemptible))
            if emits:
                running.emit(again, 3, emits)
                await fleet.results.until_tokens("r", 4)
            running.end(again, ReplicaLost("connection reset"))
    assert said == [(True, False), (True, False), (False, False)]


async def test_a_preemption_is_no_migration_on_the_status_page() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request(max_tokens=8))
        attempt, first, _ = await fleet.first_attempt()
        first.emit(attempt, 0, 3)
        await fleet.results.until_tokens("r", 3)
        first.end(attempt, Preempted("a request of a higher class takes its place"))
        again, running, _ = await fleet.first_attempt()
        running.finish(again, 3, 5)
        await fleet.results.until_over("r")
        assert fleet.dispatcher.migrations == []
        assert not fleet.dispatcher.migrations_by_cause


async def test_a_request_with_tokens_is_not_refused_where_all_are_full() -> None:
    async with local_fleet("a") as fleet:
        fleet.dispatcher.submit(request(max_tokens=8))
        (replica,) = fleet.replicas
        attempt = await replica.started.get()
        replica.emit(attempt, 0, 3)
        await fleet.results.until_tokens("r", 3)
        replica.end(attempt, Preempted("a request of a higher class takes its place"))
        replica.end(await replica.started.get(), ReplicaFull("it is full"))
        async with asyncio.timeout(10):
            replica.finish(await replica.started.get(), 3, 5)
        await fleet.results.until_over("r")
    assert not fleet.results.errors
