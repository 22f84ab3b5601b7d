"""The report of a run, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chaos import report
from chaos.analysis import Findings, InjectedFault, StreamResult, analyze
from chaos.changes import AppliedChange, Change
from chaos.service import Access
from tests.unit.chaos_examples import ANSWER, findings_of, options_of, recording


def text_of(findings: Findings, *flags: str) -> str:
    return "\n".join(report.lines(options_of(*flags), findings, analyze(findings, len(findings.streams))))


def test_text_and_json_have_failures_migrations_and_affected_streams() -> None:
    findings = findings_of(
        StreamResult(0, 0, recording(request_id="s0")),
        StreamResult(1, 0, recording(request_id="s1", error="HTTP 503")),
        access={"s0": Access("s0", 1, ["a", "b"]), "s1": Access("s1", 0, [])},
        migrations=1,
        recovery_s=[4.0],
    )
    text = text_of(findings)
    assert "1  200: HTTP 503" in text
    assert "FAILED   stream 1 (round 1, chat text, s1): HTTP 503" in text
    assert "1 by the service's metrics, 1 by its log" in text
    assert "recovery                median 4.0 s" in text
    found = json.loads(report.as_json(options_of(), findings, analyze(findings, 2)))
    assert (found["passed"], found["finished"], found["failed"]) == (False, 1, 1)
    assert [stream["affected"] for stream in found["streams"]] == [True, False]
    assert [stream["round"] for stream in found["streams"]] == [0, 0]
    assert (found["faults"][0]["replica_id"], found["faults"][0]["round"]) == ("a", 0)
    assert found["recovery_s"] == [4.0]


def test_the_times_are_those_of_affected_streams_and_of_the_baseline() -> None:
    findings = findings_of(
        StreamResult(0, 0, recording(request_id="s0", text_s="1 2 5")), access={"s0": Access("s0", 1, ["a", "b"])}
    )
    text = text_of(findings)
    assert "gap across the fault    median 3.00 s, worst 3.00 s, 1 streams (affected)" in text
    assert "longest gap             median 3.00 s, worst 3.00 s, 1 streams (affected)" in text
    assert "median 4.00 s, worst 4.00 s, 1 streams (baseline)" in text
    assert "time to first text      median 0.00 s" in text


def test_without_the_access_log_the_streams_in_flight_are_counted_and_it_is_said() -> None:
    text = text_of(findings_of(StreamResult(0, 0, recording()), unfinished=None, unavailable=["the access log of i0"]))
    assert "in flight at a fault    1" in text
    assert "unknown by the service's metrics, its log was not read" in text
    assert "unfinished at the end   unknown" in text
    assert "unavailable: the access log of i0" in text
    assert text.endswith("PASSED")


def test_a_fault_that_was_not_injected_and_every_problem_are_named() -> None:
    fault = InjectedFault(1, "kill", "a", "pid 1", 5, 0, 2.0, 0.0, error="it ended before the fault")
    text = text_of(findings_of(StreamResult(0, 0, recording()), injected=[fault], problems=["interrupted"]))
    assert "PROBLEM  interrupted" in text
    assert "NOT INJECTED kill in round 2: it ended before the fault" in text
    assert text.endswith("FAILED")


@pytest.mark.parametrize("unstable", [True, False])
def test_a_different_answer_is_shown_and_whether_the_engine_is_deterministic(*, unstable: bool) -> None:
    other = recording(answer=replace(ANSWER, finish="stop"))
    text = text_of(findings_of(StreamResult(3, 0, other), unstable={other.spec.number} if unstable else set[int]()))
    assert "DIFFERS  stream 3 (round 1, chat text, r): finish: 'stop' instead of 'length'" in text
    assert ("not deterministic" in text) == unstable


def test_only_the_first_failures_are_printed() -> None:
    streams = [StreamResult(number, 0, recording(error="HTTP 503")) for number in range(report.SHOWN + 2)]
    text = text_of(findings_of(*streams))
    assert text.count("FAILED   stream") == report.SHOWN
    assert "and 2 more (--json has them all)" in text


def test_a_closed_loop_reports_its_changes_and_the_streams_across_them() -> None:
    findings = findings_of(
        StreamResult(0, 0, recording()), injected=[], changes=[AppliedChange(Change.INGRESS, 59.0, 5.0)]
    )
    text = text_of(findings, "--fault", "rolling", "--requests", "1")
    assert "requests                1 of 1" in text
    assert "changes                 ingress at 59 s" in text
    assert "streams across changes  1" in text
    assert "faults" not in text
