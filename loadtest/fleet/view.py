"""The state of the fleet during a run, on the run's time axis. Data only: reports need no client of Ray."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TimelineEvent:
    """Something that happened during the run, such as a scaling decision or the loss of a replica."""

    at_s: float
    what: str
    kind: str = "scale"
    """scale, death (a lost replica), event (a command of `--at`) or note."""


@dataclass(frozen=True)
class TtftBreakdown:
    """Mean time to first token and its parts, in ms."""

    seen_by_client: float
    in_engine: float
    in_fleet: float | None = None
    """From dispatch in the ingress to the first token there; None where this project's ingress does not report it."""

    @property
    def outside_engine(self) -> float:
        """Network, proxy, ingress and routing."""
        return max(0.0, self.seen_by_client - self.in_engine)


@dataclass(frozen=True)
class SpecDecode:
    """Draft tokens proposed and accepted by MTP during the run."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int


@dataclass(frozen=True)
class FleetView:
    """Samples over time. Every column is as long as `at_s`, with None where a sample lacks the value."""

    at_s: list[float] = field(default_factory=list)
    replicas: dict[str, list[float | None]] = field(default_factory=dict)
    """Number of replicas by deployment and state."""
    target_replicas: list[float | None] = field(default_factory=list)
    queued: list[float | None] = field(default_factory=list)
    kv_usage: list[float | None] = field(default_factory=list)
    """Mean share of KV blocks in use, 0 to 1."""
    acceptance: list[float | None] = field(default_factory=list)
    """Tokens per engine step with MTP: 1 + accepted / drafts."""
    events: tuple[TimelineEvent, ...] = ()
    ttft_breakdown: TtftBreakdown | None = None
    recoveries: tuple[tuple[float, float | None], ...] = ()
    """(time of a load increase or fault, seconds until the objectives were met again; None where they never were)."""
    spec_decode: SpecDecode | None = None
    prefix_hit_ratio: float | None = None
    """Share of prompt tokens that the engines found in their prefix caches during the run."""
    problem: str = ""
    """The first thing that could not be read; empty where everything could."""
