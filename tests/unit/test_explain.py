"""What is said of a request: the phase that took the most, and why."""

from __future__ import annotations

import pytest

from serve_app.observability.explain import WORDS, seconds_text, sentence
from serve_app.observability.phases import Phase
from serve_app.observability.records import AttemptRecord, RequestRecord


def attempt(replica_id: str = "a", **facts: object) -> AttemptRecord:
    fields = {
        "reason": "prefix",
        "waited_for": "nothing",
        "unfinished": 0,
        "slots": 8,
        "kv_usage_ratio": 0.1,
        "missing_tokens": 10,
        "least_missing_tokens": 10,
        "dispatched_s": 0.1,
        "end": "finished",
        **facts,
    }
    return AttemptRecord(replica_id, **fields)  # type: ignore[arg-type]


def record(phase: Phase, *attempts: AttemptRecord, **facts: object) -> RequestRecord:
    """A request of 2.6 s, of which 2.1 s were spent on `phase`."""
    fields = {"prompt_tokens": 40_000, "cached_tokens": 1_600, "output_tokens": 100, "sequences": 1, **facts}
    other = Phase.RENDER if phase is Phase.RECEIVE else Phase.RECEIVE
    phases = [(str(other), 0.5), (str(phase), 2.1)]
    return RequestRecord(
        "r", "i", 0.0, 2.6, "/v1/chat/completions", 200, "ok", phases, attempts=list(attempts) or [attempt()], **fields
    )  # type: ignore[arg-type]


def test_a_long_prefill_says_how_much_and_why() -> None:
    first = attempt(reason="load", prefill_s=2.0, missing_tokens=38_400, least_missing_tokens=400)
    assert sentence(record(Phase.PREFILL, first)) == (
        "2.1 s of 2.6 s: prefill of 38,400 tokens (1,600 were cached), 19,200 tokens a second; the replica with its "
        "prefix, which lacked 400 tokens, was busier"
    )


@pytest.mark.parametrize(
    ("phase", "facts", "words"),
    [
        (Phase.ROUTING, {"waited_for": "room"}, "every replica was full"),
        (Phase.ROUTING, {"waited_for": "a replica"}, "none could take it"),
        (Phase.REPLICA_QUEUE, {"unfinished": 31}, "31 requests were there before it, of which 8 run at a time"),
        (Phase.ENGINE_QUEUE, {"kv_usage_ratio": 0.97}, "room in the KV cache (KV cache 97% used)"),
        (Phase.ENGINE_QUEUE, {"kv_usage_ratio": 0.2}, "for a slot"),
        (Phase.PREFILL, {"reason": "new"}, "no replica had any of it cached"),
        (Phase.DECODE, {"steps": 22, "tokens": 44}, "44 tokens in 22 steps of 100 ms, 2.0 tokens a step"),
        (Phase.PREEMPTION, {"preemptions": 2}, "preempted 2 times"),
        (Phase.COMPILE, {"compile_s": 2.1}, "2.1 s of 2.6 s: the engine of replica a compiled a kernel"),
        (Phase.CPU_WAIT, {"cpu_wait_s": 2.1}, "the processes of replica a were short of CPU"),
    ],
)
def test_the_cause_is_named(phase: Phase, facts: dict[str, object], words: str) -> None:
    assert words in sentence(record(phase, attempt(**facts)))


def test_a_migration_names_both_replicas() -> None:
    said = sentence(record(Phase.MIGRATION, attempt("old", end="died"), attempt("new")))
    assert said == "2.1 s of 2.6 s: it moved once, at last to replica new: replica old died"


def test_a_failed_request_says_so_first() -> None:
    failed = record(Phase.ROUTING, attempt(waited_for="a replica"), error="No replica is up.")
    assert sentence(failed).startswith("ok (200): No replica is up. 2.1 s of 2.6 s: it waited for a replica")


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_has_words_that_need_no_attempt_to_have_gone_well(phase: Phase) -> None:
    assert set(WORDS) == set(Phase)
    assert sentence(record(phase, attempt(end="cut"))).startswith("2.1 s of 2.6 s: ")


def test_durations_are_short() -> None:
    assert [seconds_text(value) for value in (0.0421, 2.14, 1234.5)] == ["42 ms", "2.1 s", "1,234 s"]
