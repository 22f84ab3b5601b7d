"""What a record says in words: one sentence that names what took the time, and the times in a table. Pure."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from serve_app.observability.phases import Phase, merged
from serve_app.observability.records import AttemptRecord, RequestRecord

FULL_KV_RATIO = 0.9
"""From here on, a wait in the engine is put down to its KV cache and not to its slots."""


def sentence(record: RequestRecord) -> str:
    """Where most of the request's time went, and why: "2.1 s of 2.6 s: prefill of 38,400 tokens; ...".

    A request that has failed says so first."""
    sums = merged(record.phases)
    failed = f"{record.outcome} ({record.status}): {record.error} " if record.error else ""
    if not sums:
        return f"{failed}It took no time that could be measured."
    main = max(sums, key=sums.__getitem__)
    return f"{failed}{seconds_text(sums[main])} of {seconds_text(record.total_s)}: {WORDS[Phase(main)](record)}"


def seconds_text(seconds: float) -> str:
    """A duration for people: milliseconds below one second."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _receive(record: RequestRecord) -> str:
    return f"the client was sending its request to {record.route}"


def _render(record: RequestRecord) -> str:
    if not record.sequences:
        return "the request was parsed and checked"
    return f"the prompt of {_tokens(record.prompt_tokens)} was prepared (template, tokens, images, grammar)"


def _routing(record: RequestRecord) -> str:
    waited_for = record.attempts[0].waited_for if record.attempts else "a replica"
    reasons = {
        "a replica": "it waited for a replica to come up: none could take it",
        "room": "it waited for room: every replica was full",
        "migrations": "it waited for requests of a lost replica, which go first",
    }
    return reasons.get(waited_for, "it waited to be sent to a replica")


def _replica_queue(record: RequestRecord) -> str:
    first = record.attempts[0]
    return (
        f"it waited at replica {first.replica_id} to be started: {first.unfinished:,} requests were there before it, "
        f"of which {first.slots:,} run at a time"
    )


def _engine_queue(record: RequestRecord) -> str:
    first = record.attempts[0]
    why = "room in the KV cache" if first.kv_usage_ratio > FULL_KV_RATIO else "a slot"
    return f"it waited in the engine of replica {first.replica_id} for {why} (KV cache {first.kv_usage_ratio:.0%} used)"


def _prefill(record: RequestRecord) -> str:
    first = record.attempts[0]
    computed = max(record.prompt_tokens - record.cached_tokens, 0)
    text = f"prefill of {_tokens(computed)}"
    if record.cached_tokens:
        text += f" ({record.cached_tokens:,} were cached)"
    if first.prefill_s > 0 and computed:
        text += f", {computed / first.prefill_s:,.0f} tokens a second"
    return text + _why_not_cached(first)


def _why_not_cached(attempt: AttemptRecord) -> str:
    if attempt.reason == "load" and attempt.least_missing_tokens < attempt.missing_tokens:
        return f"; the replica with its prefix, which lacked {attempt.least_missing_tokens:,} tokens, was busier"
    if attempt.reason == "new":
        return "; no replica had any of it cached"
    return ""


def _compile(record: RequestRecord) -> str:
    most = max(record.attempts, key=lambda one: one.compile_s)
    return f"the engine of replica {most.replica_id} compiled a kernel"


def _cpu_wait(record: RequestRecord) -> str:
    most = max(record.attempts, key=lambda one: one.cpu_wait_s)
    return f"the processes of replica {most.replica_id} were short of CPU: other work on their node had it"


def _transfer(record: RequestRecord) -> str:
    return f"it was on the way to replica {record.attempts[0].replica_id} and back"


def _decode(record: RequestRecord) -> str:
    steps = sum(one.steps for one in record.attempts)
    tokens = sum(one.tokens for one in record.attempts)
    spent_s = sum(seconds for phase, seconds in record.phases if phase == Phase.DECODE)
    text = f"decoding {_tokens(tokens)}"
    if steps > 1:
        text += f" in {steps:,} steps of {spent_s / (steps - 1) * 1000:.0f} ms, {tokens / steps:.1f} tokens a step"
    return text


def _neighbour_prefill(record: RequestRecord) -> str:
    return f"steps took longer because replica {record.attempts[-1].replica_id} computed other requests' prompts"


def _preemption(record: RequestRecord) -> str:
    times = sum(one.preemptions for one in record.attempts)
    made_room = sum(one.end == "preempted" for one in record.attempts)
    ways = [f"preempted {_times(times)} for want of KV cache"] if times or not made_room else []
    ways += [f"preempted {_times(made_room)} by requests of a higher class"] if made_room else []
    return f"it was {' and '.join(ways)}, and computed again"


def _migration(record: RequestRecord) -> str:
    ways = [
        f"replica {one.replica_id} {ENDS.get(one.end, 'lost it')}"
        for one in (record.attempts[:-1] if record.output_tokens or not record.error else record.attempts)
    ]
    last = record.attempts[-1].replica_id if record.attempts else "another"
    return f"it moved {_times(len(record.attempts) - 1)}, at last to replica {last}: {'; '.join(ways)}"


def _unanswered(record: RequestRecord) -> str:
    return f"it was at replica {record.attempts[-1].replica_id}, which had given no token yet"


def _delivery(record: RequestRecord) -> str:
    return f"all {_tokens(record.output_tokens)} were there, and the client was still reading"


ENDS: Final = MappingProxyType(
    {
        "died": "died",
        "named": "died of it",
        "beside": "died",
        "cut": "fell silent",
        "moved": "was stopping",
        "preempted": "preempted it for a request of a higher class",
    }
)
"""What `attempts.End` says of a replica that did not finish it."""

WORDS: Final[MappingProxyType[Phase, Callable[[RequestRecord], str]]] = MappingProxyType(
    {
        Phase.RECEIVE: _receive,
        Phase.RENDER: _render,
        Phase.ROUTING: _routing,
        Phase.REPLICA_QUEUE: _replica_queue,
        Phase.ENGINE_QUEUE: _engine_queue,
        Phase.PREFILL: _prefill,
        Phase.COMPILE: _compile,
        Phase.CPU_WAIT: _cpu_wait,
        Phase.TRANSFER: _transfer,
        Phase.DECODE: _decode,
        Phase.NEIGHBOUR_PREFILL: _neighbour_prefill,
        Phase.PREEMPTION: _preemption,
        Phase.MIGRATION: _migration,
        Phase.UNANSWERED: _unanswered,
        Phase.DELIVERY: _delivery,
    }
)


def _tokens(count: int) -> str:
    return f"{count:,} token" if count == 1 else f"{count:,} tokens"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
