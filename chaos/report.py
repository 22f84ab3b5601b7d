"""The results of a run as text and as JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

import msgspec

from chaos.analysis import Analysis, Findings, StreamResult, TimeStats, longest_gap_s, passed, streams_across_changes
from chaos.options import ENDS_REPLICA, ChaosOptions

SHOWN = 10
"""How many failures and differences are printed; `--json` has them all."""


def lines(options: ChaosOptions, findings: Findings, analysis: Analysis) -> Iterator[str]:
    """What is printed at the end."""
    yield ""
    yield from _problems(findings, analysis)
    yield _row(
        "streams" if options.requests is None else "requests", f"{analysis.completed:,} of {analysis.requested:,}"
    )
    yield _row("finished", f"{analysis.finished():,}")
    yield _row("failed", f"{len(analysis.failed):,}{_failure_counts(analysis)}")
    yield _row("different", f"{len(analysis.different):,}")
    if options.requests is None:
        yield from _fault_rows(options, findings, analysis)
    else:
        yield _row(
            "changes",
            ", ".join(f"{applied.change.value} at {applied.at_s:.0f} s" for applied in findings.changes) or "none",
        )
        if findings.drained:
            emptied = (f"{node.node_ip} in {node.empty_s:.0f} of {node.deadline_s:.0f} s" for node in findings.drained)
            yield _row("nodes emptied", ", ".join(emptied))
        yield _row("streams across changes", f"{streams_across_changes(findings.streams, findings.changes):,}")
    yield _row("migrations", _migrations(findings, analysis))
    yield _row("unfinished at the end", "unknown" if findings.unfinished is None else str(findings.unfinished))
    for what in findings.unavailable:
        yield f"unavailable: {what}"
    yield ""
    yield "PASSED" if passed(analysis, findings) else "FAILED"


def _row(name: str, value: str) -> str:
    return f"{name:<24}{value}"


def _fault_rows(options: ChaosOptions, findings: Findings, analysis: Analysis) -> Iterator[str]:
    injected = sum(not fault.error for fault in findings.injected)
    yield _row("faults", f"{injected} {options.fault.value}")
    whose = "affected" if analysis.affected_is_known else "in flight at a fault"
    yield _row("affected streams" if analysis.affected_is_known else whose, f"{len(analysis.affected):,}")
    if options.fault in ENDS_REPLICA:
        yield _row("gap across the fault", f"{_times(analysis.gap_across_fault)} ({whose})")
    yield _row("longest gap", f"{_times(analysis.longest_gap_affected)} ({whose})")
    yield _row("", f"{_times(analysis.longest_gap_baseline)} (baseline)")
    yield _row("time to first text", f"{_times(analysis.first_text_baseline)} (baseline)")
    if findings.recovery_s:
        times_s = findings.recovery_s
        yield _row("recovery", f"median {statistics.median(times_s):.1f} s, worst {max(times_s):.1f} s")


def _times(stats: TimeStats | None) -> str:
    if stats is None:
        return "none"
    return f"median {stats.median_s:.2f} s, worst {stats.worst_s:.2f} s, {stats.count:,} streams"


def _migrations(findings: Findings, analysis: Analysis) -> str:
    counted = "unknown" if findings.migrations is None else f"{findings.migrations:,}"
    logged = f"{analysis.logged_migrations:,} by its log" if findings.access else "its log was not read"
    return f"{counted} by the service's metrics, {logged}"


def _failure_counts(analysis: Analysis) -> str:
    counts = Counter(
        f"{result.recording.status or 'no status'}: {result.recording.error[:100]}" for result in analysis.failed
    )
    return "".join(f"\n{'':<24}{count:>6}  {failure}" for failure, count in counts.most_common(SHOWN))


def _problems(findings: Findings, analysis: Analysis) -> Iterator[str]:
    for problem in findings.problems:
        yield f"PROBLEM  {problem}"
    for fault in findings.injected:
        if fault.error:
            yield f"NOT INJECTED {fault.fault} in round {fault.round + 1}: {fault.error}"
    for result in analysis.failed[:SHOWN]:
        yield f"FAILED   {_name(result)}: {result.recording.error}"
        yield f"         {result.recording.body[-500:]!r}"
    for result, difference in analysis.different[:SHOWN]:
        yield f"DIFFERS  {_name(result)}: {difference}"
        if result.recording.spec.number in findings.unstable:
            yield "         its answer differs without a fault, too: the engine is not deterministic"
    more = max(0, len(analysis.failed) - SHOWN) + max(0, len(analysis.different) - SHOWN)
    if more:
        yield f"         and {more} more (--json has them all)"


def _name(result: StreamResult) -> str:
    spec = result.recording.spec
    return (
        f"stream {result.stream} (round {result.round + 1}, {spec.api.value} {spec.kind.value}, "
        f"{result.recording.request_id})"
    )


def as_json(options: ChaosOptions, findings: Findings, analysis: Analysis) -> bytes:
    """Everything that was measured."""
    differences = {result.stream: difference for result, difference in analysis.different}
    affected = {result.stream for result in analysis.affected}
    values = {
        "passed": passed(analysis, findings),
        "options": options,
        "requested": analysis.requested,
        "finished": analysis.finished(),
        "failed": len(analysis.failed),
        "different": len(analysis.different),
        "affected": len(analysis.affected),
        "affected_is_known": analysis.affected_is_known,
        "migrations": findings.migrations,
        "logged_migrations": analysis.logged_migrations,
        "unfinished": findings.unfinished,
        "gap_across_fault": analysis.gap_across_fault,
        "longest_gap_affected": analysis.longest_gap_affected,
        "longest_gap_baseline": analysis.longest_gap_baseline,
        "first_text_baseline": analysis.first_text_baseline,
        "recovery_s": findings.recovery_s,
        "faults": findings.injected,
        "timeline": findings.timeline,
        "changes": findings.changes,
        "drained": findings.drained,
        "streams_across_changes": streams_across_changes(findings.streams, findings.changes),
        "problems": findings.problems,
        "unavailable": findings.unavailable,
        "streams": [
            _stream(result, findings, differences.get(result.stream, ""), result.stream in affected)
            for result in findings.streams
        ],
    }
    return msgspec.json.format(msgspec.json.encode(values, enc_hook=str), indent=1)


def _stream(result: StreamResult, findings: Findings, difference: str, affected: bool) -> dict[str, object]:
    recording = result.recording
    access = findings.access.get(recording.request_id)
    return {
        "stream": result.stream,
        "round": result.round,
        "request_id": recording.request_id,
        "request": recording.spec.number,
        "api": recording.spec.api,
        "kind": recording.spec.kind,
        "streamed": recording.spec.stream,
        "status": recording.status,
        "error": recording.error,
        "body": recording.body,
        "difference": difference,
        "affected": affected,
        "migrations": access.migrations if access else None,
        "replicas": access.replica if access else [],
        "output_tokens": recording.answer.output_tokens,
        "total_s": recording.end_s - recording.start_s,
        "longest_gap_s": longest_gap_s(recording),
    }
