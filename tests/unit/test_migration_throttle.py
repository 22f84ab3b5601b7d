"""Resumed work goes first, but not all at once."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.router.migration_throttle import TOKENS_PER_REPLICA, MigrationThrottle, has_room

HALF = TOKENS_PER_REPLICA // 2


@pytest.mark.parametrize(
    ("inside", "asked", "replicas", "room"),
    [
        (0, 10 * TOKENS_PER_REPLICA, 1, True),
        (1, TOKENS_PER_REPLICA, 1, False),
        (HALF, HALF, 1, True),
        (HALF, HALF + 1, 1, False),
        (HALF, HALF + 1, 2, True),
        (0, 1, 0, True),
        (1, 1, 0, False),
    ],
)
def test_room(inside: int, asked: int, replicas: int, *, room: bool) -> None:
    assert has_room(inside, asked, replicas) is room


async def entered(throttle: MigrationThrottle, *names: str) -> dict[str, asyncio.Task[None]]:
    tasks = {name: asyncio.create_task(throttle.enter(name, HALF)) for name in names}
    await asyncio.sleep(0)
    return tasks


async def test_they_go_in_turn_as_others_have_their_first_token() -> None:
    throttle = MigrationThrottle(lambda: 1)
    tasks = await entered(throttle, "a", "b", "c", "d")
    assert [task.done() for task in tasks.values()] == [True, True, False, False]
    throttle.leave("b")
    throttle.leave("b")
    await tasks["c"]
    assert not tasks["d"].done()
    throttle.leave("a")
    await tasks["d"]


async def test_new_requests_wait_for_resumed_ones() -> None:
    throttle = MigrationThrottle(lambda: 1)
    await asyncio.wait_for(throttle.until_nobody_waits(), 1)
    await entered(throttle, "a", "b", "c")
    new = asyncio.create_task(throttle.until_nobody_waits())
    await asyncio.sleep(0)
    assert not new.done()
    throttle.leave("a")
    await asyncio.wait_for(new, 1)


async def test_who_gives_up_waiting_frees_the_way() -> None:
    throttle = MigrationThrottle(lambda: 1)
    tasks = await entered(throttle, "a", "b", "c", "d")
    tasks["c"].cancel()
    await asyncio.wait([tasks["c"]])
    throttle.leave("a")
    await asyncio.wait_for(tasks["d"], 1)
    throttle.leave("b")
    throttle.leave("d")
    await asyncio.wait_for(throttle.until_nobody_waits(), 1)


async def test_replicas_that_come_make_room() -> None:
    replicas = [0]
    throttle = MigrationThrottle(lambda: replicas[0])
    tasks = await entered(throttle, "a", "b")
    assert not tasks["b"].done()
    replicas[0] = 1
    throttle.admit_waiting()
    await asyncio.wait_for(tasks["b"], 1)
