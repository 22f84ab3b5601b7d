"""Where an attempt's time went at its replica: from vLLM's events, and from the durations of steps."""

from __future__ import annotations

import pytest
from vllm.v1.engine import EngineCoreEvent as Event
from vllm.v1.engine import EngineCoreEventType

from serve_app.engine.stalls import PrefillStalls
from serve_app.engine.vllm_io import PREEMPTED, QUEUED, SCHEDULED, engine_timing
from serve_app.protocol.messages import EngineTiming


def test_events_have_vllms_values() -> None:
    assert tuple(EngineCoreEventType) == (QUEUED, SCHEDULED, PREEMPTED)


def test_the_first_output_says_queue_and_prefill() -> None:
    assert engine_timing([Event(QUEUED, 1.0), Event(SCHEDULED, 3.0)], 7.0) == EngineTiming(
        engine_queue_s=2.0, prefill_s=4.0
    )


def test_a_preemption_before_the_first_token_is_prefill() -> None:
    events = [Event(QUEUED, 1.0), Event(SCHEDULED, 2.0), Event(PREEMPTED, 3.0), Event(SCHEDULED, 5.0)]
    assert engine_timing(events, 7.0) == EngineTiming(engine_queue_s=1.0, prefill_s=5.0, preemptions=1)


def test_a_later_preemption_lasts_until_the_next_output() -> None:
    events = [Event(PREEMPTED, 3.0), Event(SCHEDULED, 5.0), Event(PREEMPTED, 6.0), Event(SCHEDULED, 8.0)]
    assert engine_timing(events, 9.5) == EngineTiming(preempted_s=6.5, preemptions=2)


def test_a_clock_that_goes_back_makes_no_negative_time() -> None:
    assert engine_timing([Event(QUEUED, 5.0), Event(SCHEDULED, 4.0)], 3.0) == EngineTiming()
    assert engine_timing([Event(PREEMPTED, 5.0)], 3.0) == EngineTiming(preemptions=1)


def test_what_a_step_takes_longer_beside_a_prefill_is_a_stall() -> None:
    stalls = PrefillStalls()
    now_s = 0.0
    for _ in range(10):
        now_s += 0.02
        stalls.step(now_s, prefilling=False, decoding=True)
    stalls.step(now_s + 0.5, prefilling=True, decoding=True)
    stalls.step(now_s + 0.51, prefilling=True, decoding=True)
    assert stalls.total_s == pytest.approx(0.48)


def test_nobody_is_stalled_where_nobody_decodes_or_nothing_is_known() -> None:
    stalls = PrefillStalls()
    stalls.step(0.0, prefilling=True, decoding=True)
    stalls.step(1.0, prefilling=True, decoding=True)
    stalls.step(1.1, prefilling=False, decoding=True)
    stalls.step(9.0, prefilling=True, decoding=False)
    assert stalls.total_s == 0.0
