"""Two keys want everything, and one has four times the weight of the other: what each gets, and in which class."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

from bench.routing.fleet import Fleet, FleetSize
from serve_app.engine.fair_queue import OUTPUT_COST
from serve_app.protocol.errors import QueueFull
from serve_app.protocol.service_class import ServiceClass, Share
from serve_app.router.routing import RoutingPolicy

SHARES = {
    "gold": Share(weight=4),
    "plain": Share(weight=1),
    "batch": Share(ServiceClass.BATCH, weight=4),
}


@dataclass(frozen=True)
class Weights:
    """Each key keeps so many requests waiting or running, over several sessions; prompts and answers have random
    lengths up to these. Sizes are at `scale`."""

    at_a_time: int = 120
    sessions: int = 4
    prompt_tokens: int = 8_000
    output_tokens: int = 400
    duration_s: float = 300.0
    warm_up_s: float = 60.0
    seed: int = 0
    scale: float = 0.25


class WeightsRun:
    """`SHARES` on one fleet."""

    def __init__(self, load: Weights, size: FleetSize) -> None:
        self._load = load
        self._fleet = Fleet(size, load.scale, RoutingPolicy.COST, max_queued_requests=512)
        self._random = random.Random(load.seed)
        self._cost: Counter[str] = Counter()

    async def __call__(self) -> dict[str, float]:
        """What each key got of all, as a share: tokens as the queue counts them, of the requests that ended."""
        async with self._fleet, asyncio.TaskGroup() as tasks:
            for key in SHARES:
                for number in range(self._load.at_a_time):
                    tasks.create_task(self._keep_asking(key, f"session {number % self._load.sessions}"))
        return {key: self._cost[key] / self._cost.total() for key in SHARES}

    async def _keep_asking(self, key: str, session: str) -> None:
        loop, load = asyncio.get_running_loop(), self._load
        while loop.time() < load.duration_s:
            prompt_tokens = self._random.randint(1, int(load.prompt_tokens * load.scale))
            output_tokens = self._random.randint(1, int(load.output_tokens * load.scale))
            prompt = [self._random.randrange(1 << 17) for _ in range(prompt_tokens)]
            try:
                answer = await self._fleet.generate(prompt, output_tokens, session, key, SHARES[key])
            except QueueFull as refused:
                await asyncio.sleep(refused.retry_after_s or 1.0)
                continue
            if load.warm_up_s <= answer.ended_s < load.duration_s:
                self._cost[key] += int(prompt_tokens + OUTPUT_COST * output_tokens)
