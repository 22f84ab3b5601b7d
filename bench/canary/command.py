"""`python -m bench canary`: what becomes of a good canary and of bad ones, and of the requests meanwhile.

Sessions of several turns come at a fixed rate to several ingresses over a fleet of fake engines. During the run one
more ingress starts and the judge is restarted. Time is virtual; the service's code is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from rich.console import Console
from rich.table import Table

from bench.canary.fleet import CanaryFleet, Replicas
from bench.routing import virtual_time
from serve_app.config.pools import CanaryConfig
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.engine.fake_script import Fault, FaultKind
from serve_app.ingress.canary.trial import Directive
from serve_app.protocol.errors import ServeError
from serve_app.protocol.messages import ReplicaLabel
from serve_app.router.canary_arm import Arm

TURNS = 6
PROMPT_TOKENS = (200, 2000)
ANSWER_TOKENS = (16, 64)
INGRESSES = 2
START_S = 30.0

ENGINE = FakeEngineConfig(
    answer_tokens=(1 << 20, 1 << 20),
    gap_s=0.03,
    tokens_per_step=4,
    max_num_seqs=64,
    max_model_len=65_536,
    max_num_batched_tokens=4096,
    prefill_tokens_per_s=20_000.0,
)


@dataclass(frozen=True)
class Case:
    """One canary: its engine, and the weights that its label names."""

    name: str
    engine: FakeEngineConfig
    weights: str = "new"


CASES = (
    Case("as good, new weights", replace(ENGINE, plain_token_ids=(2000, 2999))),
    # A part of it is the step that follows, and the canary has less to do than the others.
    Case("TTFT +50 %", replace(ENGINE, prefill_tokens_per_s=ENGINE.prefill_tokens_per_s / 2.3)),
    Case("TPOT +50 %", replace(ENGINE, gap_s=0.045)),
    Case("drafts refused", replace(ENGINE, tokens_per_step=2)),
    Case("dies before a token", replace(ENGINE, faults=(Fault(FaultKind.CRASH, 0, every=10, on_resume=True),))),
    Case("dies within answers", replace(ENGINE, faults=(Fault(FaultKind.CRASH, 8, every=10, on_resume=True),))),
    Case(
        "the same, same weights",
        replace(ENGINE, faults=(Fault(FaultKind.CRASH, 8, every=10, on_resume=True),)),
        weights="old",
    ),
)


@dataclass
class Figures:
    """What a run was like. `judged_s` counts from the canary's first answer."""

    requests: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    arms: Counter[str] = field(default_factory=Counter)
    flipped: int = 0
    state: str = ""
    reason: str = ""
    judged_s: float | None = None
    deaths: int = 0
    by_session: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    first_canary_s: float | None = None

    def close(self, *, rolled_back: bool) -> None:
        """Count the sessions that have changed their arm, but for the change that a rollback is."""
        for arms in self.by_session.values():
            seen = [Arm.CANARY if arm == Arm.FALLBACK else arm for arm in arms]
            changes = sum(a != b for a, b in pairwise(seen))
            allowed = rolled_back and seen[0] == Arm.CANARY and seen[-1] == Arm.STABLE
            self.flipped += changes > int(allowed)


class Run:
    """One case. Call it on a virtual loop."""

    def __init__(self, case: Case, options: argparse.Namespace) -> None:
        self._case = case
        self._options = options
        self._random = random.Random(options.seed)
        self._figures = Figures()

    async def __call__(self) -> Figures:
        """Run it to its end."""
        options, case, figures = self._options, self._case, self._figures
        config = CanaryConfig(share=options.share, for_s=options.for_s, min_requests=options.min_requests)
        stable = Replicas(ReplicaLabel("", False, "old"), ENGINE, options.replicas, START_S)
        canary = Replicas(ReplicaLabel("canary", True, case.weights), case.engine, 1, START_S)
        async with CanaryFleet(stable, canary, config) as fleet:
            for _ in range(INGRESSES):
                await fleet.add_ingress()
            for ingress in fleet.ingresses:
                await ingress.dispatcher.wait_for_replica(10)
            await asyncio.sleep(2)  # both deployments are found
            await self._send_all(fleet)
            directive = fleet.ingresses[-1].follower.directive or Directive()
            figures.state, figures.reason, figures.deaths = directive.state, directive.reason, canary.deaths
            if fleet.judged_s is not None and figures.first_canary_s is not None:
                figures.judged_s = fleet.judged_s - figures.first_canary_s
        figures.close(rolled_back=figures.state == "rolled_back")
        return figures

    async def _send_all(self, fleet: CanaryFleet) -> None:
        requests, changes = self._options.requests, {}
        changes[requests // 5] = fleet.add_ingress
        sessions = max(requests // TURNS, 1)
        async with asyncio.TaskGroup() as group:
            for number in range(requests):
                if number in changes:
                    await changes[number]()
                if number == requests * 3 // 5:
                    fleet.restart_judge()
                await asyncio.sleep(self._random.expovariate(self._options.rate))
                # A session's turns come one after the other, at different ingresses.
                session = f"s{number % min(sessions, 300) + 300 * (number // (300 * TURNS))}"
                group.create_task(self._send(fleet, number, session))

    async def _send(self, fleet: CanaryFleet, number: int, session: str) -> None:
        figures, drawn = self._figures, self._random
        prompt = [drawn.randrange(100, 1000) for _ in range(drawn.randint(*PROMPT_TOKENS))]
        ingress = fleet.ingresses[number % len(fleet.ingresses)]
        figures.requests += 1
        try:
            trace = await ingress.generate(f"r{number}", prompt, drawn.randint(*ANSWER_TOKENS), session)
        except ServeError as error:
            figures.lost[type(error).__name__] += 1
            return
        figures.arms[trace.arm] += 1
        figures.by_session[session].append(trace.arm)
        if trace.arm == Arm.CANARY and figures.first_canary_s is None:
            figures.first_canary_s = asyncio.get_running_loop().time()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 where every canary got the verdict that it should."""
    options = _parser().parse_args(argv)
    cases = [case for case in CASES if options.case is None or options.case in case.name]
    found = []
    for case in cases:
        found.append((case, virtual_time.run(Run(case, options)())))
        print(f"{case.name}: {found[-1][1].state}: {found[-1][1].reason}", file=sys.stderr, flush=True)
    Console(width=120).print(as_table(found))
    wrong = [case for case, figures in found if (figures.state == "promoted") != (case is CASES[0])]
    return 1 if wrong else 0


def as_table(found: Iterable[tuple[Case, Figures]]) -> Table:
    """One line for each canary."""
    table = Table("canary", "verdict", title="Canaries")
    for heading in ("after", "requests", "by the canary", "fallbacks", "lost", "sessions flipped", "engine deaths"):
        table.add_column(heading, justify="right")
    for case, one in found:
        lost = ", ".join(f"{count} {name}" for name, count in one.lost.items()) or "0"
        table.add_row(
            case.name,
            one.state,
            "" if one.judged_s is None else f"{one.judged_s:.0f} s",
            f"{one.requests:,}",
            f"{one.arms[Arm.CANARY]} ({one.arms[Arm.CANARY] / one.requests:.1%})",
            str(one.arms[Arm.FALLBACK]),
            lost,
            str(one.flipped),
            str(one.deaths),
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench canary", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="requests of each case (default 10,000)")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second (default 40)")
    parser.add_argument("--replicas", type=int, default=8, help="engines beside the canary (default 8)")
    parser.add_argument("--share", type=float, default=0.05, help="share of the sessions (default 0.05)")
    parser.add_argument("--for-s", type=float, default=120.0, help="how long a canary is tried (default 120)")
    parser.add_argument("--min-requests", type=int, default=100, help="before a promotion (default 100)")
    parser.add_argument("--case", help="only canaries with this in their name")
    parser.add_argument("--seed", type=int, default=1)
    return parser
