"""The run in words, and in JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

import msgspec

from chaos.analysis import Analysis, Findings, Silences, Streamed, longest_silence_s, passed, streams_across_changes
from chaos.options import ENDS_REPLICA, ChaosOptions

SHOWN = 10
"""Failures and differences that are printed; `--json` has them all."""


def lines(options: ChaosOptions, findings: Findings, analysis: Analysis) -> Iterator[str]:
    """What is printed at the end."""
    yield ""
    yield from _trouble(findings, analysis)
    yield _row("streams" if options.requests is None else "requests", f"{analysis.recording:,} of {analysis.asked:,}")
    yield _row("finished", f"{analysis.finished():,}")
    yield _row("failed", f"{len(analysis.failed):,}{_kinds(analysis)}")
    yield _row("not as undisturbed", f"{len(analysis.different):,}")
    if options.requests is None:
        yield from _fault_rows(options, findings, analysis)
    else:
        yield _row(
            "changes",
            ", ".join(f"{applied.change.value} at {applied.at_s:.0f} s" for applied in findings.changes) or "none",
        )
        yield _row("streams across them", f"{streams_across_changes(findings.streams, findings.changes):,}")
    yield _row("migrations", _migrations(findings, analysis))
    yield _row("unfinished at the end", "not known" if findings.unfinished is None else str(findings.unfinished))
    for what in findings.unavailable:
        yield f"not seen: {what}"
    yield ""
    yield "PASSED" if passed(analysis, findings) else "FAILED"


def _row(name: str, value: str) -> str:
    return f"{name:<24}{value}"


def _fault_rows(options: ChaosOptions, findings: Findings, analysis: Analysis) -> Iterator[str]:
    applied = sum(not one.error for one in findings.injected)
    yield _row("faults", f"{applied} {options.fault.value}")
    whose = "hit" if analysis.hit_is_known else "in flight at a fault"
    yield _row("streams hit" if analysis.hit_is_known else whose, f"{len(analysis.hit):,}")
    if options.fault in ENDS_REPLICA:
        yield _row("wait across the fault", f"{_silences(analysis.hit_waits)} ({whose})")
    yield _row("longest silence", f"{_silences(analysis.hit_silences)} ({whose})")
    yield _row("", f"{_silences(analysis.undisturbed_silences)} (undisturbed)")
    yield _row("wait for first text", f"{_silences(analysis.undisturbed_waits)} (undisturbed)")
    if findings.recovery_s:
        again = findings.recovery_s
        yield _row("whole again after", f"median {statistics.median(again):.1f} s, worst {max(again):.1f} s")


def _silences(found: Silences | None) -> str:
    if found is None:
        return "none"
    return f"median {found.median_s:.2f} s, worst {found.worst_s:.2f} s, {found.count:,} streams"


def _migrations(findings: Findings, analysis: Analysis) -> str:
    counted = "not known" if findings.migrations is None else f"{findings.migrations:,}"
    logged = f"{analysis.logged_migrations:,} in its log" if findings.access else "its log was not read"
    return f"{counted} by the service's metrics, {logged}"


def _kinds(analysis: Analysis) -> str:
    kinds = Counter(f"{one.recording.status or 'no status'}: {one.recording.error[:100]}" for one in analysis.failed)
    return "".join(f"\n{'':<24}{count:>6}  {kind}" for kind, count in kinds.most_common(SHOWN))


def _trouble(findings: Findings, analysis: Analysis) -> Iterator[str]:
    for problem in findings.problems:
        yield f"PROBLEM  {problem}"
    for injected in findings.injected:
        if injected.error:
            yield f"NOT MADE {injected.fault} in wave {injected.round_ + 1}: {injected.error}"
    for one in analysis.failed[:SHOWN]:
        yield f"FAILED   {_named(one)}: {one.recording.error}"
        yield f"         {one.recording.body[-500:]!r}"
    for one, where in analysis.different[:SHOWN]:
        yield f"DIFFERS  {_named(one)}: {where}"
        if one.recording.spec.number in findings.unstable:
            yield "         it is answered differently without a fault too: not this service's doing, but its engine's"
    more = max(0, len(analysis.failed) - SHOWN) + max(0, len(analysis.different) - SHOWN)
    if more:
        yield f"         and {more} more (--json has them all)"


def _named(one: Streamed) -> str:
    spec = one.recording.spec
    return (
        f"stream {one.stream} (wave {one.round_ + 1}, {spec.api.value} {spec.kind.value}, {one.recording.request_id})"
    )


def as_json(options: ChaosOptions, findings: Findings, analysis: Analysis) -> bytes:
    """Everything that was measured."""
    where = {one.stream: text for one, text in analysis.different}
    hit = {one.stream for one in analysis.hit}
    text_by_channel = {
        "passed": passed(analysis, findings),
        "options": options,
        "asked": analysis.asked,
        "finished": analysis.finished(),
        "failed": len(analysis.failed),
        "different": len(analysis.different),
        "hit": len(analysis.hit),
        "hit_is_known": analysis.hit_is_known,
        "migrations": findings.migrations,
        "logged_migrations": analysis.logged_migrations,
        "unfinished": findings.unfinished,
        "wait_across_fault": analysis.hit_waits,
        "silence_hit": analysis.hit_silences,
        "silence_undisturbed": analysis.undisturbed_silences,
        "wait_for_text_undisturbed": analysis.undisturbed_waits,
        "whole_again_s": findings.recovery_s,
        "faults": findings.injected,
        "timeline": findings.timeline,
        "changes": findings.changes,
        "streams_across_changes": streams_across_changes(findings.streams, findings.changes),
        "problems": findings.problems,
        "not_seen": findings.unavailable,
        "streams": [_stream(one, findings, where.get(one.stream, ""), one.stream in hit) for one in findings.streams],
    }
    return msgspec.json.format(msgspec.json.encode(text_by_channel, enc_hook=str), indent=1)


def _stream(one: Streamed, findings: Findings, where: str, hit: bool) -> dict[str, object]:
    recording = one.recording
    access = findings.access.get(recording.request_id)
    return {
        "stream": one.stream,
        "wave": one.round_,
        "request_id": recording.request_id,
        "request": recording.spec.number,
        "api": recording.spec.api,
        "kind": recording.spec.kind,
        "streamed": recording.spec.stream,
        "status": recording.status,
        "error": recording.error,
        "body": recording.body,
        "differs": where,
        "hit": hit,
        "migrations": access.migrations if access else None,
        "replicas": access.replica if access else [],
        "output_tokens": recording.answer.output_tokens,
        "total_s": recording.end_s - recording.start_s,
        "longest_silence_s": longest_silence_s(recording),
    }
