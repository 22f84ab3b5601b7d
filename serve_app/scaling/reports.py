"""What an engine replica tells the policy, as the numbers that Serve carries to its controller, and back as facts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from serve_app.scaling.facts import ReplicaFacts

SLOTS, RUNNING, QUEUED = "slots", "running_requests", "queued_requests"
QUEUED_PREFILL, PREFILL_RATE = "queued_prefill_tokens", "prefill_tokens_per_s"
KV_USAGE, SERVICE_S = "kv_usage_ratio", "service_s"
TPOT_BASE_S, TPOT_PER_SEQUENCE_S = "tpot_base_s", "tpot_per_sequence_s"
SESSIONS, KV_CACHE = "session_tokens", "kv_cache_tokens"
ARRIVED, ARRIVED_PREFILL, START_S = "arrived_requests", "arrived_prefill_tokens", "start_s"
ARRIVED_SQUARES = "arrived_prefill_squares"

UNKNOWN_START_S = 300.0
"""How long an engine takes to start, before one has said so."""

LONGEST_SEEN_S = 1800.0
"""An engine that took longer waited for a node that was not to be had: that says nothing about the next start."""


@dataclass(frozen=True)
class ReplicaReport:
    """One replica's facts, what has arrived there since its start, and how long its engine took to start."""

    facts: ReplicaFacts
    arrived_requests: float
    arrived_prefill_tokens: float
    start_s: float | None = None
    arrived_prefill_squares: float = 0.0

    def numbers(self) -> dict[str, float]:
        """By name; what is not known is left out, for Serve takes numbers only."""
        facts = self.facts
        found: dict[str, float | None] = {
            SLOTS: facts.slots,
            RUNNING: facts.running,
            QUEUED: facts.queued,
            QUEUED_PREFILL: facts.queued_prefill_tokens,
            PREFILL_RATE: facts.prefill_tokens_per_s,
            KV_USAGE: facts.kv_usage_ratio,
            SERVICE_S: facts.service_s,
            TPOT_BASE_S: facts.tpot_base_s,
            TPOT_PER_SEQUENCE_S: facts.tpot_per_sequence_s,
            ARRIVED: self.arrived_requests,
            ARRIVED_PREFILL: self.arrived_prefill_tokens,
            START_S: self.start_s,
            ARRIVED_SQUARES: self.arrived_prefill_squares,
            SESSIONS: facts.session_tokens,
            KV_CACHE: facts.kv_cache_tokens,
        }
        return {name: float(value) for name, value in found.items() if value is not None}


def read_report(numbers: Mapping[str, float]) -> ReplicaReport | None:
    """The report in these numbers; None if they are none, as those of another version may be."""
    if SLOTS not in numbers or ARRIVED not in numbers:
        return None
    facts = ReplicaFacts(
        slots=int(numbers[SLOTS]),
        running=int(numbers.get(RUNNING, 0)),
        queued=int(numbers.get(QUEUED, 0)),
        queued_prefill_tokens=numbers.get(QUEUED_PREFILL, 0.0),
        prefill_tokens_per_s=numbers.get(PREFILL_RATE),
        kv_usage_ratio=numbers.get(KV_USAGE, 0.0),
        service_s=numbers.get(SERVICE_S),
        tpot_base_s=numbers.get(TPOT_BASE_S),
        tpot_per_sequence_s=numbers.get(TPOT_PER_SEQUENCE_S),
        session_tokens=numbers.get(SESSIONS, 0.0),
        kv_cache_tokens=numbers.get(KV_CACHE, 0.0),
    )
    tokens, squares = numbers.get(ARRIVED_PREFILL, 0.0), numbers.get(ARRIVED_SQUARES, 0.0)
    return ReplicaReport(facts, numbers[ARRIVED], tokens, numbers.get(START_S), squares)


class ArrivalCount:
    """Sums the counts of replicas that come and go: replicas count from their own starts."""

    def __init__(self) -> None:
        self.requests = 0.0
        self.prefill_tokens = 0.0
        self.prefill_squares = 0.0
        self._seen: dict[str, ReplicaReport] = {}

    def add(self, reports: Mapping[str, ReplicaReport]) -> None:
        """These are the replicas now, by their ids."""
        for name, report in reports.items():
            before = self._seen.get(name, report)
            self.requests += max(report.arrived_requests - before.arrived_requests, 0.0)
            self.prefill_tokens += max(report.arrived_prefill_tokens - before.arrived_prefill_tokens, 0.0)
            self.prefill_squares += max(report.arrived_prefill_squares - before.arrived_prefill_squares, 0.0)
        self._seen = dict(reports)


class StartTime:
    """How long it takes until an engine that was asked for serves: what the engines say, or what was seen if that is
    more. They do not see their scheduling, nor the node that had to come first."""

    def __init__(self) -> None:
        self._said_s: float | None = None
        self._seen_s = 0.0
        self._target = 0
        self._asked: tuple[float, int] | None = None

    @property
    def seconds(self) -> float:
        """As far as known."""
        return UNKNOWN_START_S if self._said_s is None else max(self._said_s, self._seen_s)

    def observe(self, now_s: float, target: int, reports: Collection[ReplicaReport]) -> None:
        """There are to be `target` replicas, and these report."""
        said = [one.start_s for one in reports if one.start_s is not None]
        self._said_s = max(said, default=self._said_s)
        if target > self._target and len(reports) >= self._target > 0:
            self._asked = (now_s, target)
        elif target != self._target:
            self._asked = None  # several starts at a time, or one that was given up
        self._target = target
        if self._asked is not None and len(reports) >= self._asked[1]:
            seen_s, self._asked = now_s - self._asked[0], None
            self._seen_s = seen_s if 0 <= seen_s <= LONGEST_SEEN_S else self._seen_s
