"""The phases of a request: they add up, in their order, for every way that a request can go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.observability.phases import Phase, PhaseSpan, first_token_s, merged, server_timing, split
from serve_app.protocol.errors import ServeError
from serve_app.protocol.messages import EngineTiming, TokenDelta
from serve_app.router.request_context import AttemptTrace, RequestContext, RequestTrace
from serve_app.router.routing import Decision, Reason

DECISION = Decision("a", Reason.NEW, missing_tokens=100)


def attempt(
    replica_id: str, dispatched_s: float, *tokens_s: float, end: str = "finished", **timing: float
) -> AttemptTrace:
    """An attempt with a token at each of these stamps; `timing` comes with the first."""
    trace = AttemptTrace(replica_id, dispatched_s, DECISION, end=end)
    for number, stamp_s in enumerate(tokens_s):
        trace.take(TokenDelta("x", number, [1], timing=None if number else EngineTiming(**timing)), stamp_s)
    return trace


def context(*sequences: RequestTrace, received_s: float = 10.0, body_read_s: float | None = 11.0) -> RequestContext:
    return RequestContext("r", received_s=received_s, body_read_s=body_read_s, sequences=list(sequences))


def seconds(spans: list[PhaseSpan]) -> dict[str, float]:
    return {phase: pytest.approx(value) for phase, value in merged([(s.phase, s.duration_s) for s in spans]).items()}


def test_each_part_of_an_undisturbed_request() -> None:
    one = attempt("a", 14.0, 20.0, 30.0, replica_queue_s=1.0, engine_queue_s=1.5, prefill_s=2.0)
    assert seconds(split(context(RequestTrace(submitted_s=13.0, attempts=[one])), 31.0)) == {
        "receive": 1.0,
        "render": 2.0,
        "routing": 1.0,
        "replica_queue": 1.0,
        "engine_queue": 1.5,
        "prefill": 2.0,
        "transfer": 1.5,
        "decode": 10.0,
        "delivery": 1.0,
    }


def test_a_lost_attempt_is_migration_until_the_next_ones_first_token() -> None:
    lost = attempt("a", 12.0, 13.0, 15.0, end="died", prefill_s=1.0)
    lost.ended_s = 18.0
    sequence = RequestTrace(submitted_s=12.0, attempts=[lost, attempt("b", 19.0, 21.0, 25.0, prefill_s=1.5)])
    assert [(span.phase, span.duration_s) for span in split(context(sequence), 25.0)] == [
        (Phase.RECEIVE, 1.0),
        (Phase.RENDER, 1.0),
        (Phase.PREFILL, 1.0),
        (Phase.DECODE, 2.0),
        (Phase.MIGRATION, 4.0),
        (Phase.MIGRATION, 2.0),
        (Phase.DECODE, 4.0),
    ]


def test_stalls_are_taken_from_decoding() -> None:
    one = attempt("a", 12.0, 13.0, 20.0)
    one.take(TokenDelta("x", 2, [1], timing=EngineTiming(neighbour_prefill_s=2.0, preempted_s=1.0)), 22.0)
    found = seconds(split(context(RequestTrace(submitted_s=12.0, attempts=[one])), 22.0))
    assert (found["decode"], found["neighbour_prefill"], found["preemption"]) == (6.0, 2.0, 1.0)


def test_compilations_and_waits_for_a_cpu_are_taken_out_where_they_were() -> None:
    one = attempt("a", 12.0, 19.0, prefill_s=1.0, compile_s=4.0, cpu_wait_s=1.5)
    one.take(TokenDelta("x", 1, [1], timing=EngineTiming(compile_s=2.0, cpu_wait_s=0.5)), 25.0)
    found = seconds(split(context(RequestTrace(submitted_s=12.0, attempts=[one])), 25.0))
    assert (found["prefill"], found["transfer"], found["decode"]) == (1.0, 0.5, 3.5)
    assert (found["compile"], found["cpu_wait"]) == (6.0, 2.0)


def test_a_request_that_was_cancelled_without_a_token_is_unanswered() -> None:
    found = seconds(split(context(RequestTrace(submitted_s=12.0, attempts=[attempt("a", 12.0)])), 17.0))
    assert found == {"receive": 1.0, "render": 1.0, "unanswered": 5.0}


def test_a_refused_request_is_unanswered_and_not_moved() -> None:
    refused = attempt("a", 12.0, end="refused")
    refused.ended_s = 16.0
    found = seconds(split(context(RequestTrace(submitted_s=12.0, attempts=[refused], error=ServeError("full"))), 17.0))
    assert found == {"receive": 1.0, "render": 1.0, "unanswered": 5.0}


def test_a_client_that_waited_for_more_is_not_said_to_read_slowly() -> None:
    one = attempt("a", 12.0, 13.0, 15.0, end="cancelled")
    one.ended_s = 30.0
    found = seconds(split(context(RequestTrace(submitted_s=12.0, attempts=[one])), 30.0))
    assert found == {"receive": 1.0, "render": 1.0, "transfer": 1.0, "decode": 17.0}


def test_making_room_for_a_higher_class_is_preemption() -> None:
    first = attempt("a", 12.0, 13.0, 15.0, end="preempted")
    sequence = RequestTrace(submitted_s=12.0, attempts=[first, attempt("a", 16.0, 20.0, 22.0)])
    assert sequence.migrations == 0
    found = seconds(split(context(sequence), 22.0))
    assert (found["preemption"], found["decode"]) == (5.0, 4.0)
    assert "migration" not in found


def test_a_broken_stream_that_no_replica_took_on_waited_for_one() -> None:
    waiting = RequestTrace(submitted_s=12.0, resumed_tokens=7)
    assert seconds(split(context(waiting), 72.0))["routing"] == 60.0


def test_a_request_that_no_replica_took_waited_for_one() -> None:
    failed = RequestTrace(submitted_s=12.0, error=ServeError("none"))
    assert seconds(split(context(failed), 17.0)) == {"receive": 1.0, "render": 1.0, "routing": 5.0}


def test_a_request_that_was_refused_before_was_rendered() -> None:
    assert seconds(split(context(), 12.0)) == {"receive": 1.0, "render": 1.0}
    assert seconds(split(context(body_read_s=None), 12.0)) == {"receive": 2.0}


def test_of_several_sequences_the_last_one_is_followed_and_the_first_token_counts() -> None:
    early = RequestTrace(submitted_s=12.0, first_token_s=13.0, attempts=[attempt("a", 12.0, 13.0, 14.0)])
    late = RequestTrace(submitted_s=12.0, first_token_s=15.0, attempts=[attempt("b", 12.0, 15.0, 19.0)])
    both = context(early, late)
    assert seconds(split(both, 19.0))["decode"] == 4.0
    assert first_token_s(both) == 3.0


def test_server_timing_is_in_milliseconds_with_the_total() -> None:
    assert server_timing(context(), 12.0) == "receive;dur=1000.0, render;dur=1000.0, total;dur=2000.0"


stamps = st.floats(min_value=0, max_value=100)
timings = st.builds(EngineTiming, *[st.floats(min_value=0, max_value=50)] * 5, st.integers(0, 3))


@st.composite
def attempts(draw: st.DrawFn) -> AttemptTrace:
    trace = AttemptTrace("a", draw(stamps), DECISION, end="died")
    for number, stamp_s in enumerate(sorted(draw(st.lists(stamps, max_size=4)))):
        trace.take(TokenDelta("x", number, [1], timing=draw(st.none() | timings)), stamp_s)
    trace.ended_s = draw(st.none() | stamps)
    return trace


@given(
    st.lists(st.builds(RequestTrace, stamps, attempts=st.lists(attempts(), max_size=3)), max_size=3),
    st.none() | stamps,
    stamps,
    stamps,
)
def test_whatever_the_stamps_are_the_phases_add_up(
    sequences: list[RequestTrace], body_read_s: float | None, received_s: float, more_s: float
) -> None:
    """Stamps out of order included: a clock of another process, or a bug, must not make a time negative."""
    one = context(*sequences, received_s=received_s, body_read_s=body_read_s)
    spans = split(one, received_s + more_s)
    assert all(span.duration_s > 0 for span in spans)
    assert sum(span.duration_s for span in spans) == pytest.approx(more_s, abs=1e-6)
