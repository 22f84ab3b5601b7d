"""One run: sessions in a closed loop over a fleet, perhaps with a change in the middle, and the figures of it."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from bench.routing.fleet import Fleet, FleetSize
from bench.routing.workload import Session, SessionSource, Shape, Turn
from serve_app.protocol.pages import PAGE_TOKENS
from serve_app.router.routing import RoutingPolicy


class Change(StrEnum):
    """What happens when half of the time has passed."""

    NONE = "steady"
    SCALE_OUT = "scale-out"
    KILL = "kill"
    EVICTION = "eviction"


@dataclass(frozen=True)
class Scenario:
    """`sessions` at a time. What starts in the first `warm_up_s` is not counted; after a change, what starts in the
    `settle_s` after it."""

    policy: RoutingPolicy
    change: Change = Change.NONE
    named: bool = False
    """Whether the sessions have ids."""
    sessions: int = 64
    duration_s: float = 1800.0
    warm_up_s: float = 600.0
    settle_s: float = 60.0
    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    size: FleetSize = field(default_factory=FleetSize)


@dataclass(frozen=True)
class TurnRecord:
    """One turn. `seen_tokens` of its prompt were in an earlier prompt or answer: one cache of unlimited size for the
    whole fleet has them."""

    started_s: float
    ended_s: float
    ttft_s: float
    replica: str
    prompt_tokens: int
    cached_tokens: int
    seen_tokens: int


@dataclass(frozen=True)
class Figures:
    """A run in figures. `imbalance` is the largest over the mean of the replicas' running time."""

    turns: int
    hit_ratio: float
    of_oracle: float
    ttft_p50_s: float
    ttft_p95_s: float
    imbalance: float
    turns_per_s: float


def figures(records: Sequence[TurnRecord], since_s: float, until_s: float, replicas: Sequence[str]) -> Figures:
    """The figures of the turns that began in a period; `replicas` were there in it."""
    counted = [one for one in records if since_s <= one.started_s < until_s]
    busy_s: dict[str, float] = defaultdict(float)
    for one in records:
        busy_s[one.replica] += max(min(one.ended_s, until_s) - max(one.started_s, since_s), 0.0)
    prompt, cached, seen = (
        sum(getattr(one, name) for one in counted) for name in ("prompt_tokens", "cached_tokens", "seen_tokens")
    )
    ttft_s = sorted(one.ttft_s for one in counted)
    loads = [busy_s[name] for name in replicas]
    return Figures(
        len(counted),
        cached / prompt,
        cached / seen,
        statistics.median(ttft_s),
        ttft_s[int(0.95 * len(ttft_s))],
        max(loads) / statistics.fmean(loads),
        len(counted) / (until_s - since_s),
    )


class Run:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._source = SessionSource(scenario.shape, scenario.seed)
        self._fleet = Fleet(scenario.size, scenario.shape.scale, scenario.policy)
        self._records: list[TurnRecord] = []
        self._seen_systems: set[int] = set()

    async def __call__(self) -> Figures:
        """Run it, and return the figures of the period that counts."""
        scenario = self._scenario
        loop = asyncio.get_running_loop()
        middle_s = (scenario.warm_up_s + scenario.duration_s) / 2
        async with self._fleet, asyncio.TaskGroup() as tasks:
            for number in range(scenario.sessions):
                starts_s = number * scenario.warm_up_s / 4 / scenario.sessions
                tasks.create_task(self._sessions(starts_s))
            await asyncio.sleep(middle_s - loop.time())
            await self._change()
        changed = scenario.change is not Change.NONE
        since_s = middle_s + scenario.settle_s if changed else scenario.warm_up_s
        return figures(self._records, since_s, scenario.duration_s, list(self._fleet.live))

    async def _change(self) -> None:
        if self._scenario.change is Change.SCALE_OUT:
            await self._fleet.add_replica()
        elif self._scenario.change is Change.KILL:
            self._fleet.kill_replica()
        elif self._scenario.change is Change.EVICTION:
            self._fleet.empty_caches()

    @property
    def _over(self) -> bool:
        return asyncio.get_running_loop().time() >= self._scenario.duration_s

    async def _sessions(self, starts_s: float) -> None:
        await asyncio.sleep(starts_s)
        while not self._over:
            session = self._source.next()
            seen = len(session.system) if id(session.system) in self._seen_systems else 0
            self._seen_systems.add(id(session.system))
            await self._converse(session, list(session.system), session.turns, seen)

    async def _converse(self, session: Session, history: list[int], turns: Sequence[Turn], seen_tokens: int) -> None:
        shape = self._scenario.shape
        for turn in turns:
            if self._over or len(history) + turn.added_tokens > shape.tokens(shape.max_prompt_tokens):
                return
            history.extend(self._source.token_ids(turn.added_tokens))
            await self._ask(session, history, turn, seen_tokens)
            seen_tokens = len(history)
            await asyncio.sleep(turn.think_s)
            if turn.child_turns:
                await self._converse(session, list(history), self._source.turns(turn.child_turns), seen_tokens)

    async def _ask(self, session: Session, history: list[int], turn: Turn, seen_tokens: int) -> None:
        started_s = asyncio.get_running_loop().time()
        name = session.name if self._scenario.named else None
        answer = await self._fleet.generate(history, turn.output_tokens, name)
        trace = answer.trace
        self._records.append(
            TurnRecord(
                started_s,
                answer.ended_s,
                (trace.first_token_s or answer.ended_s) - started_s,
                trace.replicas[-1],
                len(history),
                trace.cached_tokens,
                seen_tokens // PAGE_TOKENS * PAGE_TOKENS,
            )
        )
        history.extend(answer.token_ids)


def scenarios(
    policies: Sequence[RoutingPolicy], changes: Sequence[Change], named: Sequence[bool], base: Scenario
) -> list[Scenario]:
    """Every combination."""
    return [
        replace(base, policy=policy, change=change, named=with_ids)
        for change, with_ids, policy in itertools.product(changes, named, policies)
    ]
