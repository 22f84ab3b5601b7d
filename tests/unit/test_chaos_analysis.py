"""What is concluded from recordings, faults and the access log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos import analysis, report
from chaos.analysis import InjectedFault, StreamResult
from chaos.response_recorder import Answer
from chaos.service import Access
from chaos.stream import Recording
from tests.unit.chaos_examples import ANSWER, findings_of, options_of, recording


@pytest.mark.parametrize(
    ("actual", "difference"),
    [
        (ANSWER, ""),
        (replace(ANSWER, parts=(("reasoning", "AAAA"), ("content", "BCDEFFGHI"))), "content, character 5 of 8"),
        (replace(ANSWER, parts=(("reasoning", "AAAA"), ("content", "BCDEFGH"))), "content, character 7 of 8"),
        (replace(ANSWER, parts=(("content", "AAAABCDEFGHI"),)), "content where reasoning was expected"),
        (replace(ANSWER, parts=ANSWER.parts[:1]), "1 parts instead of 2"),
        (replace(ANSWER, finish="stop"), "finish: 'stop' instead of 'length'"),
        (replace(ANSWER, output_tokens=13), "output_tokens: 13 instead of 12"),
    ],
)
def test_the_first_difference_of_two_answers_is_named(actual: Answer, difference: str) -> None:
    found = analysis.first_difference(ANSWER, actual)
    assert found.startswith(difference)
    assert bool(found) == bool(difference)


def test_a_run_passes_if_all_streams_finished_with_the_same_answers() -> None:
    findings = findings_of(StreamResult(0, 0, recording()), StreamResult(1, 0, recording(request_id="s")))
    found = analysis.analyze(findings, 2)
    assert analysis.passed(found, findings)
    assert found.finished() == 2


@pytest.mark.parametrize(
    ("stream", "more"),
    [
        (recording(error="cut"), {}),
        (recording(answer=replace(ANSWER, finish="stop")), {}),
        (recording(), {"unfinished": 1}),
        (recording(), {"problems": ["interrupted"]}),
        (recording(), {"injected": [InjectedFault(0, "kill", "a", "", 5, 0, 2.0, 0.0, error="gone")]}),
    ],
)
def test_a_run_fails_otherwise(stream: Recording, more: dict[str, object]) -> None:
    findings = findings_of(StreamResult(0, 0, stream), **more)
    found = analysis.analyze(findings, 1)
    assert not analysis.passed(found, findings)
    assert "FAILED" in list(report.lines(options_of(), findings, found))


def test_a_run_with_a_missing_stream_fails() -> None:
    findings = findings_of(StreamResult(0, 0, recording()))
    assert not analysis.passed(analysis.analyze(findings, 2), findings)


def test_the_access_log_names_the_affected_streams() -> None:
    streams = [StreamResult(number, 0, recording(request_id=f"s{number}")) for number in range(3)]
    access = {"s0": Access("s0", 1, ["a", "b"]), "s1": Access("s1", 0, ["b"]), "s2": Access("s2", 0, ["a"])}
    injected = [InjectedFault(0, "kill", "a", "pid 1", 5, 0, 2.0, 0.0)]
    affected, known = analysis.affected_streams(streams, injected, access)
    assert known
    assert [result.stream for result in affected] == [0, 2]
    assert analysis.affected_streams(streams, injected, {}) == (streams, False)
    assert analysis.affected_streams(streams, [], access) == ([], True)


def test_a_gap_is_between_two_pieces_of_text() -> None:
    assert analysis.longest_gap_s(recording(text_s="1 2 7 8")) == 5.0
    assert analysis.longest_gap_s(recording(text_s="1")) is None
    found = analysis.longest_gaps([recording(text_s="0 1"), recording(text_s="0 3"), recording(text_s="")])
    assert found == analysis.TimeStats(2, 2.0, 3.0)


@pytest.mark.parametrize(
    ("text_s", "gap_s"),
    [
        ("1 2 5 6", 3.0),
        ("1 2 2.1 5 9", 2.9),  # one piece was in transit; the later 4 s are not the fault's
        ("1 2", None),  # nothing after it
        ("3 4", None),  # nothing before it
    ],
)
def test_the_gap_across_a_fault_ends_with_the_first_text_after_it(text_s: str, gap_s: float | None) -> None:
    assert analysis.gap_across_fault_s(recording(text_s=text_s), 2.0) == gap_s
