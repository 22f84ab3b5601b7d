"""Everybody asks ten times what there is: what is still finished, when the others are refused, and whether they are
told the truth about when to come back.

A refused client comes back when it was told to. In the burst it does so until it is served; under lasting overload it
gives up after `tries`, as the vendors' SDKs do.

When there was room for a refused request is known afterwards: when as many requests had ended as it took for those that
had been refused before it and were still to come in, and for itself.
"""

from __future__ import annotations

import asyncio
import bisect
import random
import statistics
from dataclasses import dataclass, field

from bench.routing.fleet import Fleet, FleetSize
from serve_app.protocol.errors import QueueFull, ServeError
from serve_app.router.admission import MOST_RETRY_S
from serve_app.router.routing import RoutingPolicy


@dataclass(frozen=True)
class Overload:
    """`factor` times `capacity_per_s` requests come for `asking_s`, after `before_s` of 0.7 times as many. Sizes are at
    `scale`; answers have random lengths around the mean."""

    factor: float
    asking_s: float
    tries: int
    capacity_per_s: float
    clients: int = 40
    prompt_tokens: int = 6_000
    output_tokens: int = 300
    max_queued_requests: int = 64
    before_s: float = 60.0
    warm_up_s: float = 10.0
    seed: int = 0
    scale: float = 0.25


@dataclass
class _Asked:
    """One request. `told` has each refusal: when, and the seconds that it was told."""

    told: list[tuple[float, float]] = field(default_factory=list)
    admitted_s: float | None = None


@dataclass(frozen=True)
class OverloadResult:
    """`finished_per_s` is over the time in which requests come, after the warm-up. The error is of the refusals for
    which there was room within what may be told (a minute)."""

    finished_per_s: float
    refused: int
    refused_late: int
    """Refused when an answer had begun."""
    retry_error_ratio: float | None
    compared: int


class OverloadRun:
    """One such load."""

    def __init__(self, load: Overload, size: FleetSize) -> None:
        self._load = load
        self._fleet = Fleet(size, load.scale, RoutingPolicy.COST, max_queued_requests=load.max_queued_requests)
        self._random = random.Random(load.seed)
        self._asked: list[_Asked] = []
        self._ended_s: list[float] = []
        self._late = 0

    async def __call__(self) -> OverloadResult:
        """Run it until every request was served or has given up."""
        load, loop = self._load, asyncio.get_running_loop()
        async with self._fleet, asyncio.TaskGroup() as tasks:
            while (now_s := loop.time()) < load.before_s + load.asking_s:
                factor = load.factor if now_s >= load.before_s else 0.7
                await asyncio.sleep(self._random.expovariate(factor * load.capacity_per_s))
                tasks.create_task(self._ask(f"client-{self._random.randrange(load.clients)}"))
        self._ended_s.sort()
        counted_s = load.before_s + load.warm_up_s, load.before_s + load.asking_s
        counted = sum(counted_s[0] <= one < counted_s[1] for one in self._ended_s)
        errors = self._retry_errors()
        return OverloadResult(
            counted / (counted_s[1] - counted_s[0]),
            sum(len(one.told) for one in self._asked),
            self._late,
            statistics.median(errors) if errors else None,
            len(errors),
        )

    async def _ask(self, client: str) -> None:
        loop, load = asyncio.get_running_loop(), self._load
        asked = _Asked()
        self._asked.append(asked)
        prompt = [self._random.randrange(1 << 17) for _ in range(int(load.prompt_tokens * load.scale))]
        answer_tokens = int(load.output_tokens * load.scale * self._random.uniform(0.5, 1.5))
        for _ in range(load.tries):
            try:
                answer = await self._fleet.generate(prompt, answer_tokens, None, client)
            except QueueFull as refused:
                wait_s = refused.retry_after_s or 0.0
                asked.told.append((loop.time(), wait_s))
                await asyncio.sleep(wait_s)
                continue
            except ServeError:
                self._late += 1
                return
            asked.admitted_s = answer.trace.submitted_s
            self._ended_s.append(answer.ended_s)
            return

    def _retry_errors(self) -> list[float]:
        """Of each refusal, how far the time that was told is from when there was room, relative to that."""
        came_in = sorted((one for one in self._asked if one.told and one.admitted_s is not None), key=_first_s)
        first_s = [_first_s(one) for one in came_in]
        errors = []
        for asked in self._asked:
            for at_s, told_s in asked.told:
                before = came_in[: bisect.bisect_left(first_s, at_s)]
                ahead = sum(one is not asked and (one.admitted_s or 0.0) > at_s for one in before)
                index = bisect.bisect_right(self._ended_s, at_s) + ahead
                if index < len(self._ended_s) and (room_s := self._ended_s[index] - at_s) <= MOST_RETRY_S:
                    errors.append(abs(told_s - room_s) / max(room_s, 1.0))
        return errors


def _first_s(asked: _Asked) -> float:
    return asked.told[0][0]
