"""What the run has shown: which answers differ and where, who was hit, how long it was silent. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.changes import AppliedChange
from chaos.response_recorder import Answer
from chaos.service import Access
from chaos.stream import Recording

ON_ITS_WAY_S = 0.25
"""How long after a fault text may still come that was sent before it: a few hops on a busy machine."""

AROUND = 24
"""Characters that are shown on each side of where two texts part."""


@dataclass(frozen=True)
class Streamed:
    """One stream of a wave and what became of it."""

    stream: int
    round_: int
    recording: Recording


@dataclass(frozen=True)
class InjectedFault:
    """One fault that was made. `error`: it could not be, and why."""

    round_: int
    fault: str
    replica_id: str
    process: str
    token: int
    stream: int
    at_s: float
    """On the clock of the streams."""
    unix_s: float
    error: str = ""


@dataclass
class Findings:
    """Everything that a run has seen so far; an interrupted one is told from the same."""

    undisturbed: dict[int, Recording] = field(default_factory=dict)
    """By the number of the request."""
    streams: list[Streamed] = field(default_factory=list)
    injected: list[InjectedFault] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    migrations: int | None = None
    """By the service's metrics; None where they cannot be read."""
    access: dict[str, Access] = field(default_factory=dict)
    """The service's own log of these requests, by request id."""
    unfinished: int | None = None
    """What the replicas hold when all is over; None where it cannot be asked."""
    unstable: set[int] = field(default_factory=set)
    """Requests that are answered differently without any fault too."""
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """(seconds since the start, replicas' states), whenever they changed."""
    changes: list[AppliedChange] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What kept the run from being what was asked for."""
    unavailable: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""


def first_difference(expected: Answer, recording: Answer) -> str:
    """In what two answers differ, first difference first; empty where they are the same."""
    if expected.parts != recording.parts:
        return _parts_differ(expected.parts, recording.parts)
    for name in ("finish", "prompt_tokens", "output_tokens"):
        want, got = getattr(expected, name), getattr(recording, name)
        if want != got:
            return f"{name}: {got!r} instead of {want!r}"
    return ""


def _parts_differ(expected: Sequence[tuple[str, str]], recording: Sequence[tuple[str, str]]) -> str:
    for want, got in zip(expected, recording, strict=False):
        if want[0] != got[0]:
            return f"{got[0]} where {want[0]} was due"
        if want[1] != got[1]:
            at = next(
                (n for n, (a, b) in enumerate(zip(want[1], got[1], strict=False)) if a != b),
                min(len(want[1]), len(got[1])),
            )
            around = slice(max(0, at - AROUND), at + AROUND)
            return f"{want[0]}, character {at} of {len(want[1])}: {got[1][around]!r} instead of {want[1][around]!r}"
    return f"{len(recording)} parts instead of {len(expected)}"


def longest_silence_s(recording: Recording) -> float | None:
    """Between two pieces of text; None where there are not two."""
    return max((after - before for before, after in pairwise(recording.text_s)), default=None)


def wait_across_s(recording: Recording, fault_s: float) -> float | None:
    """Between the last text before a fault and the first after it; None for a stream that had none on either side.

    What was on its way at the fault still comes: the longest silence that began by then is meant.
    """
    spans = [(before, after) for before, after in pairwise(recording.text_s) if before <= fault_s + ON_ITS_WAY_S]
    return max((after - before for before, after in spans if after > fault_s), default=None)


@dataclass(frozen=True)
class Silences:
    """How long streams were silent, at their longest."""

    count: int
    median_s: float
    worst_s: float


def silences(recording: Sequence[Recording]) -> Silences | None:
    """Of these streams; None where none has two pieces of text."""
    return _summed([silence for one in recording if (silence := longest_silence_s(one)) is not None])


def waits_for_text(recording: Sequence[Recording]) -> Silences | None:
    """From sending these requests to their first piece of text: what a prefill takes, and the way there and back."""
    return _summed([one.text_s[0] - one.start_s for one in recording if one.text_s])


def _summed(found: Sequence[float]) -> Silences | None:
    return Silences(len(found), statistics.median(found), max(found)) if found else None


@dataclass(frozen=True)
class Analysis:
    """The run in figures."""

    asked: int
    recording: int
    failed: Sequence[Streamed]
    different: Sequence[tuple[Streamed, str]]
    hit: Sequence[Streamed]
    hit_is_known: bool
    """Whether the access log told who was hit; otherwise all that were in flight count."""
    logged_migrations: int
    hit_waits: Silences | None
    """Across the fault."""
    hit_silences: Silences | None
    undisturbed_silences: Silences | None
    undisturbed_waits: Silences | None
    """For the first piece of text."""

    def finished(self) -> int:
        """Streams with a proper answer, right or not."""
        return self.recording - len(self.failed)


def analyze(findings: Findings, asked: int) -> Analysis:
    """Hold every stream against its undisturbed run."""
    failed = [one for one in findings.streams if not one.recording.finished]
    different = []
    for one in findings.streams:
        undisturbed = findings.undisturbed.get(one.recording.spec.number)
        if one.recording.finished and undisturbed is not None:
            where = first_difference(undisturbed.answer, one.recording.answer)
            if where:
                different.append((one, where))
    hit, known = streams_hit(findings.streams, findings.injected, findings.access)
    at_s = {one.round_: one.at_s for one in findings.injected if not one.error}
    waits = [wait_across_s(one.recording, at_s[one.round_]) for one in hit]
    return Analysis(
        asked=asked,
        recording=len(findings.streams),
        failed=failed,
        different=different,
        hit=hit,
        hit_is_known=known,
        logged_migrations=sum(one.migrations for one in findings.access.values()),
        hit_waits=_summed([wait for wait in waits if wait is not None]),
        hit_silences=silences([one.recording for one in hit]),
        undisturbed_silences=silences(list(findings.undisturbed.values())),
        undisturbed_waits=waits_for_text(list(findings.undisturbed.values())),
    )


def streams_across_changes(streams: Sequence[Streamed], changes: Sequence[AppliedChange]) -> int:
    """How many streamed answers had begun before a change and ended after it."""
    return sum(
        one.recording.spec.stream
        and any(one.recording.start_s < applied.clock_s < one.recording.end_s for applied in changes)
        for one in streams
    )


def streams_hit(
    streams: Sequence[Streamed], injected: Sequence[InjectedFault], access: Mapping[str, Access]
) -> tuple[list[Streamed], bool]:
    """The streams that ran where a fault struck while it did, and whether that is known.

    It is where the access log names a request's replicas. Otherwise: whoever was in flight at that moment.
    """
    faults = {one.round_: one for one in injected if not one.error}
    disturbed = [one for one in streams if one.round_ in faults]
    in_flight = [one for one in disturbed if one.recording.start_s <= faults[one.round_].at_s <= one.recording.end_s]
    if any(one.recording.request_id not in access for one in disturbed):
        return in_flight, False
    # A stream that begins just after may still be sent to the lost replica: it has a resume, and was not in flight.
    hit = {one.stream for one in disturbed if access[one.recording.request_id].migrations}
    hit |= {
        one.stream for one in in_flight if faults[one.round_].replica_id in access[one.recording.request_id].replica
    }
    return [one for one in disturbed if one.stream in hit], True


def passed(analysis: Analysis, findings: Findings) -> bool:
    """Whether the promise held: every stream finished, all the same, no slot lost, every fault made."""
    return (
        analysis.recording == analysis.asked
        and not analysis.failed
        and not analysis.different
        and not findings.unfinished
        and not findings.problems
        and not any(one.error for one in findings.injected)
    )
