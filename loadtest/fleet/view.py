"""What the fleet looked like during a run, on the run's time axis: data only, so that reports need no client of Ray."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mark:
    """Something that happened at a moment, such as a scale decision or a replica's death."""

    at_s: float
    what: str
    kind: str = "scale"


@dataclass(frozen=True)
class TtftBreakdown:
    """Mean time to the first token, taken apart, in ms."""

    seen_by_client: float
    in_engine: float
    in_fleet: float | None = None
    """From the ingress handing it on to the first token back there, where this project's ingress counts it."""

    @property
    def elsewhere(self) -> float:
        """Proxy, ingress, routing, network: everything that is not the engine."""
        return max(0.0, self.seen_by_client - self.in_engine)


@dataclass(frozen=True)
class SpecDecode:
    """What MTP drafted and the model accepted over the whole run."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int


@dataclass(frozen=True)
class FleetView:
    """Samples over time; every column is as long as `at_s`, None where a sample lacks it."""

    at_s: list[float] = field(default_factory=list)
    replicas: dict[str, list[float | None]] = field(default_factory=dict)
    """Number of replicas by state."""
    target_replicas: list[float | None] = field(default_factory=list)
    queued: list[float | None] = field(default_factory=list)
    kv_usage: list[float | None] = field(default_factory=list)
    """Mean share of KV blocks in use, 0 to 1."""
    acceptance: list[float | None] = field(default_factory=list)
    """Tokens per engine step that MTP made of one: 1 + accepted / drafts."""
    marks: tuple[Mark, ...] = ()
    split: TtftBreakdown | None = None
    recoveries: tuple[tuple[float, float | None], ...] = ()
    """(moment of a step or death, seconds until the objectives held again; None where they never did)."""
    spec_decode: SpecDecode | None = None
    prefix_hit_ratio: float | None = None
    """Share of prompt tokens that the engines found in their prefix caches during the run."""
    problem: str = ""
    """Why there is no more to see."""
