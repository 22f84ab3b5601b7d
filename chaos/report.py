"""The run in words, and in JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

import msgspec

from chaos.analysis import Analysis, Findings, Silences, Streamed, across_a_change, longest_silence_s, passed
from chaos.options import ENDS_REPLICA, Options

SHOWN = 10
"""Failures and differences that are printed; `--json` has them all."""


def lines(options: Options, findings: Findings, verdict: Analysis) -> Iterator[str]:
    """What is printed at the end."""
    yield ""
    yield from _trouble(findings, verdict)
    yield _row("streams" if options.requests is None else "requests", f"{verdict.heard:,} of {verdict.asked:,}")
    yield _row("finished", f"{verdict.finished():,}")
    yield _row("failed", f"{len(verdict.failed):,}{_kinds(verdict)}")
    yield _row("not as undisturbed", f"{len(verdict.different):,}")
    if options.requests is None:
        yield from _fault_rows(options, findings, verdict)
    else:
        yield _row(
            "changes", ", ".join(f"{made.change.value} at {made.at_s:.0f} s" for made in findings.changes) or "none"
        )
        yield _row("streams across them", f"{across_a_change(findings.streams, findings.changes):,}")
    yield _row("migrations", _migrations(findings, verdict))
    yield _row("unfinished at the end", "not known" if findings.unfinished is None else str(findings.unfinished))
    for what in findings.unseen:
        yield f"not seen: {what}"
    yield ""
    yield "PASSED" if passed(verdict, findings) else "FAILED"


def _row(name: str, value: str) -> str:
    return f"{name:<24}{value}"


def _fault_rows(options: Options, findings: Findings, verdict: Analysis) -> Iterator[str]:
    made = sum(not one.error for one in findings.struck)
    yield _row("faults", f"{made} {options.fault.value}")
    whose = "hit" if verdict.hit_is_known else "in flight at a fault"
    yield _row("streams hit" if verdict.hit_is_known else whose, f"{len(verdict.hit):,}")
    if options.fault in ENDS_REPLICA:
        yield _row("wait across the fault", f"{_silences(verdict.hit_waits)} ({whose})")
    yield _row("longest silence", f"{_silences(verdict.hit_silences)} ({whose})")
    yield _row("", f"{_silences(verdict.calm_silences)} (undisturbed)")
    yield _row("wait for first text", f"{_silences(verdict.calm_waits)} (undisturbed)")
    if findings.whole_again_s:
        again = findings.whole_again_s
        yield _row("whole again after", f"median {statistics.median(again):.1f} s, worst {max(again):.1f} s")


def _silences(found: Silences | None) -> str:
    if found is None:
        return "none"
    return f"median {found.median_s:.2f} s, worst {found.worst_s:.2f} s, {found.count:,} streams"


def _migrations(findings: Findings, verdict: Analysis) -> str:
    counted = "not known" if findings.migrations is None else f"{findings.migrations:,}"
    logged = f"{verdict.logged_migrations:,} in its log" if findings.access else "its log was not read"
    return f"{counted} by the service's metrics, {logged}"


def _kinds(verdict: Analysis) -> str:
    kinds = Counter(f"{one.heard.status or 'no status'}: {one.heard.error[:100]}" for one in verdict.failed)
    return "".join(f"\n{'':<24}{count:>6}  {kind}" for kind, count in kinds.most_common(SHOWN))


def _trouble(findings: Findings, verdict: Analysis) -> Iterator[str]:
    for problem in findings.problems:
        yield f"PROBLEM  {problem}"
    for struck in findings.struck:
        if struck.error:
            yield f"NOT MADE {struck.fault} in wave {struck.wave + 1}: {struck.error}"
    for one in verdict.failed[:SHOWN]:
        yield f"FAILED   {_named(one)}: {one.heard.error}"
        yield f"         {one.heard.body[-500:]!r}"
    for one, where in verdict.different[:SHOWN]:
        yield f"DIFFERS  {_named(one)}: {where}"
        if one.heard.ask.number in findings.wavering:
            yield "         it is answered differently without a fault too: not this service's doing, but its engine's"
    more = max(0, len(verdict.failed) - SHOWN) + max(0, len(verdict.different) - SHOWN)
    if more:
        yield f"         and {more} more (--json has them all)"


def _named(one: Streamed) -> str:
    ask = one.heard.ask
    return f"stream {one.stream} (wave {one.wave + 1}, {ask.api.value} {ask.kind.value}, {one.heard.request_id})"


def as_json(options: Options, findings: Findings, verdict: Analysis) -> bytes:
    """Everything that was measured."""
    where = {one.stream: text for one, text in verdict.different}
    hit = {one.stream for one in verdict.hit}
    whole = {
        "passed": passed(verdict, findings),
        "options": options,
        "asked": verdict.asked,
        "finished": verdict.finished(),
        "failed": len(verdict.failed),
        "different": len(verdict.different),
        "hit": len(verdict.hit),
        "hit_is_known": verdict.hit_is_known,
        "migrations": findings.migrations,
        "logged_migrations": verdict.logged_migrations,
        "unfinished": findings.unfinished,
        "wait_across_fault": verdict.hit_waits,
        "silence_hit": verdict.hit_silences,
        "silence_undisturbed": verdict.calm_silences,
        "wait_for_text_undisturbed": verdict.calm_waits,
        "whole_again_s": findings.whole_again_s,
        "faults": findings.struck,
        "timeline": findings.timeline,
        "changes": findings.changes,
        "streams_across_changes": across_a_change(findings.streams, findings.changes),
        "problems": findings.problems,
        "not_seen": findings.unseen,
        "streams": [_stream(one, findings, where.get(one.stream, ""), one.stream in hit) for one in findings.streams],
    }
    return msgspec.json.format(msgspec.json.encode(whole, enc_hook=str), indent=1)


def _stream(one: Streamed, findings: Findings, where: str, hit: bool) -> dict[str, object]:
    heard = one.heard
    access = findings.access.get(heard.request_id)
    return {
        "stream": one.stream,
        "wave": one.wave,
        "request_id": heard.request_id,
        "request": heard.ask.number,
        "api": heard.ask.api,
        "kind": heard.ask.kind,
        "streamed": heard.ask.stream,
        "status": heard.status,
        "error": heard.error,
        "body": heard.body,
        "differs": where,
        "hit": hit,
        "migrations": access.migrations if access else None,
        "replicas": access.replica if access else [],
        "output_tokens": heard.answer.output_tokens,
        "total_s": heard.end_s - heard.start_s,
        "longest_silence_s": longest_silence_s(heard),
    }
