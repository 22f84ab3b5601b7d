"""What a service's routing does for sessions of coding agents: cache hits against the possible ones, and balance.

Definitions, with failed requests as requests of which nothing was cached:
- hit ratio: cached / prompt tokens, from the answers' usage.
- possible hit ratio: what one unlimited cache of the whole service would have had. Of a session's first prompt that is
  its program's system prompt, unless that is sent for the first time; of a child's first prompt, its parent's
  conversation so far; of any other prompt, the one before and its answer. Lengths are the server's counts where it
  answered, and those of the plan otherwise. Caches keep whole blocks and compute at least one token, so that a perfect
  one stays a little below.
- computed tokens: prompt tokens that were not cached.
- max / mean: of the replica with most, and of all replicas that appear. 1 is even.
- running time: from a request's start to its end as the client sees it; of a window, the part within.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from loadtest.api.record import Record, RunRecords, ttft_s
from loadtest.data.prompt import Prompt
from loadtest.errors import RequestOutcome

PERCENTILES = (50.0, 90.0, 99.0)


class TurnKind(Enum):
    """What a prompt has in common with earlier ones."""

    SESSION_START = "first turns"
    LATER_TURN = "later turns"
    CHILD_START = "children's first turns"
    CHILD_TURN = "children's later turns"


@dataclass(frozen=True)
class Turn:
    """One request. Times are in s since the start of the run; cached and possible count prompt tokens."""

    session: int
    parent: int
    turn: int
    kind: TurnKind
    ok: bool
    start_s: float
    end_s: float
    ttft_ms: float | None
    prompt_tokens: int
    cached_tokens: int
    possible_tokens: int
    output_tokens: int
    replica: str
    """Empty where neither the response nor the access log names it."""


@dataclass(frozen=True)
class TurnFigures:
    """Figures of a group of turns."""

    requests: int
    failed: int
    ttft_ms: Mapping[float, float]
    """Percentiles of those that succeeded; empty without any."""
    prompt_tokens_mean: float
    hit_ratio: float
    possible_hit_ratio: float

    @property
    def share_of_possible(self) -> float | None:
        """Hit ratio / possible hit ratio; None where nothing was possible."""
        return self.hit_ratio / self.possible_hit_ratio if self.possible_hit_ratio else None

    @staticmethod
    def of(turns: Sequence[Turn]) -> TurnFigures:
        """From the turns themselves."""
        ttft_ms = [turn.ttft_ms for turn in turns if turn.ttft_ms is not None]
        found: list[float] = np.percentile(ttft_ms, PERCENTILES).tolist() if ttft_ms else []
        prompt = sum(turn.prompt_tokens for turn in turns)
        return TurnFigures(
            requests=len(turns),
            failed=sum(not turn.ok for turn in turns),
            ttft_ms=dict(zip(PERCENTILES, found, strict=False)),
            prompt_tokens_mean=prompt / len(turns) if turns else 0.0,
            hit_ratio=sum(turn.cached_tokens for turn in turns) / prompt if prompt else 0.0,
            possible_hit_ratio=sum(turn.possible_tokens for turn in turns) / prompt if prompt else 0.0,
        )


@dataclass(frozen=True)
class ReplicaLoad:
    """What one replica did."""

    requests: int
    running_s: float
    computed_tokens: int


@dataclass(frozen=True)
class Balance:
    """The load of each replica, and max / mean over them."""

    replicas: Mapping[str, ReplicaLoad]
    requests: float
    running_s: float
    computed_tokens: float

    @staticmethod
    def of(turns: Sequence[Turn], begin_s: float, end_s: float) -> Balance | None:
        """Of the requests that ran from `begin_s` to `end_s`; None where no replica is known."""
        loads: dict[str, ReplicaLoad] = {}
        for turn in turns:
            running_s = min(turn.end_s, end_s) - max(turn.start_s, begin_s)
            if not turn.replica or running_s < 0:
                continue
            started = begin_s <= turn.start_s < end_s
            before = loads.get(turn.replica, ReplicaLoad(0, 0.0, 0))
            computed = turn.prompt_tokens - turn.cached_tokens if started else 0
            loads[turn.replica] = ReplicaLoad(
                before.requests + started, before.running_s + running_s, before.computed_tokens + computed
            )
        if not loads:
            return None
        return Balance(
            dict(sorted(loads.items())),
            _max_by_mean([load.requests for load in loads.values()]),
            _max_by_mean([load.running_s for load in loads.values()]),
            _max_by_mean([load.computed_tokens for load in loads.values()]),
        )


def _max_by_mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return max(values) / mean if mean else 1.0


@dataclass(frozen=True)
class Window:
    """A part of the run: figures of the requests that started in it, and the load of the replicas."""

    begin_s: float
    end_s: float
    figures: TurnFigures
    balance: Balance | None


@dataclass(frozen=True)
class AgentMetrics:
    """All figures of a run of agents' sessions. Interrupted requests are in none of them."""

    figures: TurnFigures
    by_kind: Mapping[TurnKind, TurnFigures]
    balance: Balance | None
    windows: Sequence[Window]
    turns: Sequence[Turn]
    unnamed: int
    """Requests whose replica is not known."""


def agent_metrics_of(
    prompts: Sequence[Prompt], run: RunRecords, window_s: float, replicas: Mapping[int, str]
) -> AgentMetrics | None:
    """The metrics of a run of the data set `agents`; None of any other.

    `replicas` has the replica of requests, by their index, for responses that do not name it.
    """
    records = [r for r in run.records if r.outcome is not RequestOutcome.INTERRUPTED]
    if not records or not all(prompts[record.index].shared_prefix for record in records):
        return None
    turns = _turns_of(prompts, run, sorted(records, key=lambda record: record.start_ns), replicas)
    kinds = {kind: [turn for turn in turns if turn.kind is kind] for kind in TurnKind}
    end_s = max(turn.end_s for turn in turns)
    return AgentMetrics(
        figures=TurnFigures.of(turns),
        by_kind={kind: TurnFigures.of(some) for kind, some in kinds.items() if some},
        balance=Balance.of(turns, 0.0, end_s),
        windows=_windows(turns, window_s, end_s),
        turns=turns,
        unnamed=sum(not turn.replica for turn in turns),
    )


def _turns_of(
    prompts: Sequence[Prompt], run: RunRecords, records: Sequence[Record], replicas: Mapping[int, str]
) -> list[Turn]:
    """The turns in the order of their start, in which what was sent before is known."""
    lengths: dict[int, int] = {}
    """Of each session's conversation with its last answer, in tokens."""
    programs: set[str] = set()
    turns = []
    for record in records:
        prompt = prompts[record.index]
        tokens = (record.prompt_tokens if record.ok else 0) or prompt.prompt_tokens
        before = lengths.get(prompt.session, lengths.get(prompt.parent, 0))
        if not before and prompt.shared_prefix in programs:
            before = round(prompt.shared_prefix_tokens * tokens / max(1, prompt.prompt_tokens))
        programs.add(prompt.shared_prefix)
        lengths[prompt.session] = tokens + (record.output_tokens if record.ok else 0)
        turns.append(
            Turn(
                session=prompt.session,
                parent=prompt.parent,
                turn=prompt.turn,
                kind=_kind(prompt),
                ok=record.ok,
                start_s=(record.start_ns - run.begin_ns) / 1e9,
                end_s=(record.end_ns - run.begin_ns) / 1e9,
                ttft_ms=ttft_s(record) * 1e3 if record.ok else None,
                prompt_tokens=tokens,
                cached_tokens=record.cached_tokens if record.ok else 0,
                possible_tokens=min(before, tokens - 1),
                output_tokens=record.output_tokens if record.ok else 0,
                replica=record.replica or replicas.get(record.index, ""),
            )
        )
    return turns


def _kind(prompt: Prompt) -> TurnKind:
    if prompt.parent < 0:
        return TurnKind.LATER_TURN if prompt.turn else TurnKind.SESSION_START
    return TurnKind.CHILD_TURN if prompt.turn else TurnKind.CHILD_START


def _windows(turns: Sequence[Turn], window_s: float, run_end_s: float) -> list[Window]:
    windows = []
    for number in range(int(run_end_s / window_s) + 1):
        begin_s, end_s = number * window_s, min((number + 1) * window_s, run_end_s)
        started = [turn for turn in turns if begin_s <= turn.start_s < end_s]
        balance = Balance.of(turns, begin_s, end_s)
        if started or balance:
            windows.append(Window(begin_s, end_s, TurnFigures.of(started), balance))
    return windows
