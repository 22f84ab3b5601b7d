"""Requests that find no engine: one call asks for one, and they all run on it."""

from __future__ import annotations

from serve_app.protocol.errors import EngineCannotStart, NoReplica
from serve_app.router.attempts import DispatcherLimits
from serve_app.router.fleet_state import FleetState
from tests.unit.local_replicas import LocalReplica, local_fleet, request, until

SLEEPS = DispatcherLimits(request_deadline_s=10, may_sleep=True)


async def test_many_requests_ask_for_an_engine_with_one_call_and_run_on_it() -> None:
    async with local_fleet("", SLEEPS) as fleet:
        assert fleet.dispatcher.fleet().state is FleetState.ASLEEP
        for number in range(5):
            fleet.dispatcher.submit(request(str(number)))
        asked = await fleet.transport.wakes.get()
        assert fleet.dispatcher.fleet().state is FleetState.STARTING
        assert fleet.dispatcher.fleet().waiting == 5
        replica = fleet.transport.live["new"] = LocalReplica("new")
        asked.set_result(None)
        for _ in range(5):
            replica.finish(await replica.started.get(), 0)
        for number in range(5):
            await fleet.results.until_over(str(number))
        assert fleet.dispatcher.fleet().state is FleetState.UP
        assert fleet.transport.wakes.empty()
    assert not fleet.results.errors


async def test_the_call_ends_when_nobody_waits_any_more() -> None:
    async with local_fleet("", SLEEPS) as fleet:
        fleet.dispatcher.submit(request("a"))
        asked = await fleet.transport.wakes.get()
        fleet.dispatcher.cancel("a")
        await until(asked.cancelled)
        assert fleet.dispatcher.fleet().waiting == 0


async def test_an_engine_that_goes_as_a_request_comes_is_followed_by_another() -> None:
    async with local_fleet("a", SLEEPS) as fleet:
        await fleet.dispatcher.wait_for_replica(10)
        fleet.dispatcher.submit(request())
        (old,) = fleet.replicas
        await old.started.get()
        fleet.lose(old)
        await fleet.transport.wakes.get()
        new = fleet.transport.live["b"] = LocalReplica("b")
        new.finish(await new.started.get(), 0)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100]


async def test_requests_end_at_once_where_no_engine_can_be_started_and_the_next_one_tries_again() -> None:
    async with local_fleet("", SLEEPS) as fleet:
        fleet.dispatcher.submit(request("a"))
        fleet.dispatcher.submit(request("b"))
        (await fleet.transport.wakes.get()).set_exception(EngineCannotStart("no room for it"))
        for name in "ab":
            await fleet.results.until_over(name)
            error = fleet.results.errors[name]
            assert isinstance(error, NoReplica)
            assert "no room for it" in str(error)
        assert fleet.dispatcher.fleet().state is FleetState.FAILED
        fleet.dispatcher.submit(request("c"))
        await fleet.transport.wakes.get()
        replica = fleet.transport.live["new"] = LocalReplica("new")
        replica.finish(await replica.started.get(), 0)
        await fleet.results.until_over("c")
    assert fleet.results.tokens["c"] == [100]


async def test_requests_end_when_engines_fail_to_start_and_later_ones_run_on_the_one_that_starts() -> None:
    async with local_fleet("", SLEEPS) as fleet:
        fleet.dispatcher.note_failed_starts("nobody waits")
        assert fleet.dispatcher.fleet().state is FleetState.ASLEEP
        fleet.dispatcher.submit(request("a"))
        await fleet.transport.wakes.get()
        fleet.dispatcher.note_failed_starts("its engine fails to start")
        await fleet.results.until_over("a")
        assert "its engine fails to start" in str(fleet.results.errors["a"])
        await fleet.until_idle()
        assert fleet.dispatcher.fleet().state is FleetState.FAILED
        fleet.dispatcher.submit(request("b"))
        await fleet.transport.wakes.get()
        assert fleet.dispatcher.fleet().state is FleetState.STARTING
        replica = fleet.transport.live["new"] = LocalReplica("new")
        replica.finish(await replica.started.get(), 0)
        await fleet.results.until_over("b")
    assert fleet.results.tokens["b"] == [100]


async def test_a_fleet_that_should_always_have_an_engine_asks_for_none() -> None:
    async with local_fleet("", DispatcherLimits(request_deadline_s=0.05)) as fleet:
        fleet.dispatcher.submit(request())
        await fleet.results.until_over("r")
        assert fleet.transport.wakes.empty()
        assert fleet.dispatcher.fleet().state is FleetState.DOWN
