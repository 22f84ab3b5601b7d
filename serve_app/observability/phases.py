"""The time of one request, split into phases that follow each other and add up to the whole. Pure.

    received   body read   submitted      dispatched          first token        last token        last byte
    | receive  |  render   |   routing    |  at the replica:  |  decode          |  delivery        |
                                          |  replica_queue    |  neighbour_prefill
                                          |  engine_queue     |  preemption
                                          |  prefill          |  migration
                                          |  compile, cpu_wait|  compile, cpu_wait
                                          |  transfer         |

Of several sequences (`n`, several prompts), the one that was complete last is followed: the others ran beside it. The
stamps are the ingress'; what the replica says of its part are durations, so that no two clocks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from serve_app.router.attempts import LOST, End
from serve_app.router.request_context import AttemptTrace, RequestContext, RequestTrace


class Phase(StrEnum):
    """What a request's time is spent on."""

    RECEIVE = "receive"
    """Until the whole body has been read: the client sends it."""
    RENDER = "render"
    """Parsing, the chat template, tokens, images, and the check of a grammar."""
    ROUTING = "routing"
    """Wait for a replica to send it to."""
    REPLICA_QUEUE = "replica_queue"
    """Wait at the replica for its turn, before the engine got it."""
    ENGINE_QUEUE = "engine_queue"
    """Wait in the engine for a slot, or for room in the KV cache."""
    PREFILL = "prefill"
    """From its first scheduling to its first token."""
    COMPILE = "compile"
    """The engine compiled a kernel, for this request or another: before its first token, or while it was decoded."""
    CPU_WAIT = "cpu_wait"
    """The replica's processes were ready to run, and other work had the CPUs of their node; before the first token or
    after."""
    TRANSFER = "transfer"
    """What is left between its dispatch and its first token: the way there and back, and event loops."""
    DECODE = "decode"
    """From the first token to the last one, without what comes below."""
    NEIGHBOUR_PREFILL = "neighbour_prefill"
    """How much longer steps took because they computed other requests' prompts."""
    PREEMPTION = "preemption"
    """Preempted for want of KV cache, and computed again, or to make room for a request of a higher class."""
    MIGRATION = "migration"
    """From the last token of a lost attempt to the next one's first token."""
    UNANSWERED = "unanswered"
    """At a replica that gave no token, for a request that ended there: cancelled, or refused."""
    DELIVERY = "delivery"
    """From the last token to the last byte that the client took."""


@dataclass(frozen=True)
class PhaseSpan:
    """A phase, and for how long. Spans follow each other."""

    phase: Phase
    duration_s: float


def split(context: RequestContext, ended_s: float) -> list[PhaseSpan]:
    """The phases of a request that ended at `ended_s`, or that has come so far. None is empty; together they last from
    its arrival to `ended_s`."""
    clock = _Clock(context.received_s, ended_s)
    clock.until(Phase.RECEIVE, ended_s if context.body_read_s is None else context.body_read_s)
    sequence = slowest(context.sequences)
    if sequence is None:
        clock.until(Phase.RENDER, ended_s)
    else:
        clock.until(Phase.RENDER, sequence.submitted_s)
        _follow(clock, sequence, ended_s)
    return clock.spans


def at_replica(attempt: AttemptTrace) -> list[PhaseSpan]:
    """The phases of one attempt, from its dispatch to its last token; none without a token. What stalls its decoding
    (`NEIGHBOUR_PREFILL`, `PREEMPTION`, and `COMPILE` and `CPU_WAIT` after the first token) is part of `DECODE`: it is
    spread over it."""
    if attempt.first_token_s is None or attempt.last_token_s is None:
        return []
    clock = _Clock(attempt.dispatched_s, attempt.last_token_s)
    clock.shares(_before_first_token(attempt), Phase.TRANSFER, attempt.first_token_s)
    clock.until(Phase.DECODE, attempt.last_token_s)
    return clock.spans


def slowest(sequences: Sequence[RequestTrace]) -> RequestTrace | None:
    """The sequence that got its last token last; one without a token is later than any with one."""
    return max(sequences, key=_last_token_s, default=None)


def first_token_s(context: RequestContext) -> float | None:
    """From its arrival to the first token of any sequence; None without one."""
    stamps = [one.first_token_s for one in context.sequences if one.first_token_s is not None]
    return max(min(stamps) - context.received_s, 0.0) if stamps else None


def merged(phases: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The seconds of each phase by its name, in the order of `Phase`: decoding comes more than once after a
    migration."""
    sums: dict[str, float] = {}
    for phase, seconds in sorted(phases, key=lambda one: _ORDER[one[0]]):
        sums[phase] = sums.get(phase, 0.0) + seconds
    return sums


def server_timing(context: RequestContext, now_s: float) -> str:
    """The phases so far, and the whole, as the value of a `Server-Timing` header (W3C), in milliseconds."""
    phases = merged([(str(span.phase), span.duration_s) for span in split(context, now_s)])
    phases["total"] = now_s - context.received_s
    return ", ".join(f"{phase};dur={seconds * 1000:.1f}" for phase, seconds in phases.items())


AFTER = {
    **dict.fromkeys((end.value for end in LOST), Phase.MIGRATION),
    End.PREEMPTED.value: Phase.PREEMPTION,
}
"""What the time after an attempt that has ended so goes to, until another one's first token."""

_ORDER = {str(phase): number for number, phase in enumerate(Phase)}


class _Clock:
    """Walks from stamp to stamp, never back, and never past the end."""

    def __init__(self, started_s: float, ended_s: float) -> None:
        self._now_s = started_s
        self._ended_s = ended_s
        self.spans: list[PhaseSpan] = []

    def until(self, phase: Phase, stamp_s: float) -> None:
        """The time until that stamp goes to `phase`."""
        stamp_s = min(stamp_s, self._ended_s)
        if stamp_s > self._now_s:
            self.spans.append(PhaseSpan(phase, stamp_s - self._now_s))
            self._now_s = stamp_s

    def shares(self, parts: Sequence[tuple[Phase, float]], rest: Phase, stamp_s: float) -> None:
        """Divide the time until that stamp: `parts` get what they lasted, as far as there is so much, `rest` the
        rest."""
        left_s = min(stamp_s, self._ended_s) - self._now_s
        for phase, lasted_s in parts:
            taken_s = min(lasted_s, max(left_s, 0.0))
            left_s -= taken_s
            self.until(phase, self._now_s + taken_s)
        self.until(rest, stamp_s)


def _last_token_s(sequence: RequestTrace) -> float:
    stamps = [attempt.last_token_s for attempt in sequence.attempts if attempt.last_token_s is not None]
    return max(stamps, default=float("inf"))


def _follow(clock: _Clock, sequence: RequestTrace, ended_s: float) -> None:
    gap = Phase.ROUTING
    """What the time between two attempts goes to."""
    for attempt in sequence.attempts:
        is_first = gap is Phase.ROUTING
        clock.until(gap, attempt.dispatched_s)
        after = AFTER.get(attempt.end, Phase.UNANSWERED)
        if attempt.first_token_s is None or attempt.last_token_s is None:
            clock.until(after, attempt.ended_s or ended_s)  # nothing came back, so nothing is known of its time
        elif is_first:
            clock.shares(_before_first_token(attempt), Phase.TRANSFER, attempt.first_token_s)
        else:
            clock.until(gap, attempt.first_token_s)
        if attempt.last_token_s is not None:
            _decode(clock, attempt, attempt.last_token_s)
            if attempt.end == End.CANCELLED.value:  # by a stop string at once, or by a client that waited for more
                clock.until(Phase.DECODE, attempt.ended_s or ended_s)
        gap = after
    if sequence.error is not None or not sequence.attempts:
        clock.until(gap, ended_s)
    clock.until(Phase.DELIVERY, ended_s)


def _before_first_token(attempt: AttemptTrace) -> list[tuple[Phase, float]]:
    return [
        (Phase.REPLICA_QUEUE, attempt.replica_queue_s),
        (Phase.ENGINE_QUEUE, attempt.engine_queue_s),
        (Phase.PREFILL, attempt.prefill_s),
        (Phase.COMPILE, attempt.first_compile_s),
        (Phase.CPU_WAIT, attempt.first_cpu_wait_s),
    ]


def _decode(clock: _Clock, attempt: AttemptTrace, last_token_s: float) -> None:
    stalls = [
        (Phase.NEIGHBOUR_PREFILL, attempt.neighbour_prefill_s),
        (Phase.PREEMPTION, attempt.preempted_s),
        (Phase.COMPILE, attempt.compile_s),
        (Phase.CPU_WAIT, attempt.cpu_wait_s),
    ]
    clock.shares(stalls, Phase.DECODE, last_token_s)
