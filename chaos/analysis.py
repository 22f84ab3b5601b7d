"""What a run has shown: which answers differ and where, which streams a fault affected, how long they paused. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.changes import AppliedChange
from chaos.node_drain import DrainedNode
from chaos.response_recorder import Answer
from chaos.service import Access
from chaos.stream import Recording

IN_TRANSIT_S = 0.25
"""How long after a fault text may still arrive that was sent before it: a few hops on a busy machine."""

SHOWN_CHARACTERS = 24
"""Characters shown on each side of the first difference between two texts."""


@dataclass(frozen=True)
class StreamResult:
    """One stream of a round and its recording."""

    stream: int
    round: int
    recording: Recording


@dataclass(frozen=True)
class InjectedFault:
    """One fault of a run."""

    round: int
    fault: str
    replica_id: str
    process: str
    token: int
    stream: int
    at_s: float
    """On the event loop's clock, as the recordings' times."""
    unix_s: float
    error: str = ""
    """Why the fault was not injected; empty if it was."""


@dataclass
class Findings:
    """Everything that a run has measured so far. The report of an interrupted run is made from the same."""

    baseline: dict[int, Recording] = field(default_factory=dict)
    """Each request without a fault, by its number."""
    streams: list[StreamResult] = field(default_factory=list)
    injected: list[InjectedFault] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    migrations: int | None = None
    """By the service's metrics; None if they cannot be read."""
    access: dict[str, Access] = field(default_factory=dict)
    """The service's access log lines of these requests, by request id."""
    unfinished: int | None = None
    """Requests that the replicas still hold at the end; None if not known."""
    unstable: set[int] = field(default_factory=set)
    """Requests that get different answers without a fault, too."""
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """(seconds since the start, replicas' states) at each change."""
    changes: list[AppliedChange] = field(default_factory=list)
    drained: list[DrainedNode] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Why the run is not the one that was requested."""
    unavailable: list[str] = field(default_factory=list)
    """What could not be read, and why."""


def first_difference(expected: Answer, actual: Answer) -> str:
    """The first difference between two answers; empty if they are the same."""
    if expected.parts != actual.parts:
        return _difference_of_parts(expected.parts, actual.parts)
    for name in ("finish", "prompt_tokens", "output_tokens"):
        want, got = getattr(expected, name), getattr(actual, name)
        if want != got:
            return f"{name}: {got!r} instead of {want!r}"
    return ""


def _difference_of_parts(expected: Sequence[tuple[str, str]], actual: Sequence[tuple[str, str]]) -> str:
    for want, got in zip(expected, actual, strict=False):
        if want[0] != got[0]:
            return f"{got[0]} where {want[0]} was expected"
        if want[1] != got[1]:
            at = next(
                (n for n, (a, b) in enumerate(zip(want[1], got[1], strict=False)) if a != b),
                min(len(want[1]), len(got[1])),
            )
            shown = slice(max(0, at - SHOWN_CHARACTERS), at + SHOWN_CHARACTERS)
            return f"{want[0]}, character {at} of {len(want[1])}: {got[1][shown]!r} instead of {want[1][shown]!r}"
    return f"{len(actual)} parts instead of {len(expected)}"


def longest_gap_s(recording: Recording) -> float | None:
    """The longest time between two pieces of text; None if there are fewer than two."""
    return max((after - before for before, after in pairwise(recording.text_s)), default=None)


def gap_across_fault_s(recording: Recording, fault_s: float) -> float | None:
    """Time between the last text before a fault and the first after it; None if there is no text on one side.

    Text that was in transit at the fault still arrives. So this is the longest gap that began by then and ended after
    the fault.
    """
    gaps = [(before, after) for before, after in pairwise(recording.text_s) if before <= fault_s + IN_TRANSIT_S]
    return max((after - before for before, after in gaps if after > fault_s), default=None)


@dataclass(frozen=True)
class TimeStats:
    """A time of several streams: `count` of them had one."""

    count: int
    median_s: float
    worst_s: float


def longest_gaps(recordings: Sequence[Recording]) -> TimeStats | None:
    """Longest gaps of streams; None if none has two pieces of text."""
    return _stats([gap_s for recording in recordings if (gap_s := longest_gap_s(recording)) is not None])


def times_to_first_text(recordings: Sequence[Recording]) -> TimeStats | None:
    """From sending each request to its first piece of text: mostly the prefill."""
    return _stats([recording.text_s[0] - recording.start_s for recording in recordings if recording.text_s])


def _stats(times_s: Sequence[float]) -> TimeStats | None:
    return TimeStats(len(times_s), statistics.median(times_s), max(times_s)) if times_s else None


@dataclass(frozen=True)
class Analysis:
    """A run in figures."""

    requested: int
    """How many streams (or requests) the run should have."""
    completed: int
    """How many it has; some may have failed."""
    failed: Sequence[StreamResult]
    different: Sequence[tuple[StreamResult, str]]
    affected: Sequence[StreamResult]
    affected_is_known: bool
    """Whether the access log names the affected streams; otherwise they are all that were in flight at a fault."""
    logged_migrations: int
    gap_across_fault: TimeStats | None
    longest_gap_affected: TimeStats | None
    longest_gap_baseline: TimeStats | None
    first_text_baseline: TimeStats | None

    def finished(self) -> int:
        """Streams with a complete, well-formed answer, right or wrong."""
        return self.completed - len(self.failed)


def analyze(findings: Findings, requested: int) -> Analysis:
    """Compare every stream with its baseline."""
    different = []
    for result in findings.streams:
        baseline = findings.baseline.get(result.recording.spec.number)
        if result.recording.finished and baseline is not None:
            difference = first_difference(baseline.answer, result.recording.answer)
            if difference:
                different.append((result, difference))
    affected, known = affected_streams(findings.streams, findings.injected, findings.access)
    fault_s = {fault.round: fault.at_s for fault in findings.injected if not fault.error}
    gaps_s = [gap_across_fault_s(result.recording, fault_s[result.round]) for result in affected]
    baselines = list(findings.baseline.values())
    return Analysis(
        requested=requested,
        completed=len(findings.streams),
        failed=[result for result in findings.streams if not result.recording.finished],
        different=different,
        affected=affected,
        affected_is_known=known,
        logged_migrations=sum(line.migrations for line in findings.access.values()),
        gap_across_fault=_stats([gap_s for gap_s in gaps_s if gap_s is not None]),
        longest_gap_affected=longest_gaps([result.recording for result in affected]),
        longest_gap_baseline=longest_gaps(baselines),
        first_text_baseline=times_to_first_text(baselines),
    )


def streams_across_changes(streams: Sequence[StreamResult], changes: Sequence[AppliedChange]) -> int:
    """How many streamed answers began before a change and ended after it."""
    return sum(
        result.recording.spec.stream
        and any(result.recording.start_s < applied.clock_s < result.recording.end_s for applied in changes)
        for result in streams
    )


def affected_streams(
    streams: Sequence[StreamResult], injected: Sequence[InjectedFault], access: Mapping[str, Access]
) -> tuple[list[StreamResult], bool]:
    """The streams that ran on the replica of a fault when it was injected, and whether that is known.

    The access log names each request's replicas. Without it: all streams in flight at that moment.
    """
    faults = {fault.round: fault for fault in injected if not fault.error}
    candidates = [result for result in streams if result.round in faults]
    in_flight = [
        result
        for result in candidates
        if result.recording.start_s <= faults[result.round].at_s <= result.recording.end_s
    ]
    if any(result.recording.request_id not in access for result in candidates):
        return in_flight, False
    # A stream that begins just after a fault may still be sent to the lost replica: it was not in flight, but migrates.
    affected = {result.stream for result in candidates if access[result.recording.request_id].migrations}
    affected |= {
        result.stream
        for result in in_flight
        if faults[result.round].replica_id in access[result.recording.request_id].replica
    }
    return [result for result in candidates if result.stream in affected], True


def passed(analysis: Analysis, findings: Findings) -> bool:
    """Whether every stream finished with its baseline's answer, no slot was lost, and every fault was injected."""
    return (
        analysis.completed == analysis.requested
        and not analysis.failed
        and not analysis.different
        and not findings.unfinished
        and not findings.problems
        and not any(fault.error for fault in findings.injected)
    )
