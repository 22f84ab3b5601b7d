"""Traces: what is read, what is refused, and what the standard ones are."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.data.from_file import trace as loadtest_trace
from loadtest.data.prompt import DatasetSpec
from serve_app.ingress.metrics import FieldsFormatter
from serve_app.simulate.generators import GENERATORS
from serve_app.simulate.trace import BadTrace, TraceRequest, read_access_log, read_trace, write_trace

GOOD = {"arrival_s": 5.0, "prompt_tokens": 800, "output_tokens": 30}


def file_of(folder: Path, *lines: object) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def test_a_trace_is_read_in_the_order_of_arrival_from_zero(tmp_path: Path) -> None:
    later = {**GOOD, "arrival_s": 7.5, "session": "s", "prefix_tokens": 700, "key": "k"}
    assert read_trace(file_of(tmp_path, later, GOOD)) == [
        TraceRequest(0.0, 800, 30),
        TraceRequest(2.5, 800, 30, "s", 700, "k"),
    ]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    requests = [TraceRequest(0.0, 10, 5), TraceRequest(1.25, 20, 6, "s", 12, "k")]
    write_trace(tmp_path / "t.jsonl", requests)
    assert read_trace(tmp_path / "t.jsonl") == requests


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 3"),
        ('{"arrival_s": 1}', "prompt_tokens"),
        ({**GOOD, "tokens": 3}, "tokens"),
        ({**GOOD, "prompt_tokens": 0}, "line 3: prompt_tokens is 0"),
        ({**GOOD, "arrival_s": -1}, "line 3: arrival_s is -1"),
        ({**GOOD, "session": "s", "prefix_tokens": 800}, "is not below prompt_tokens"),
        ({**GOOD, "prefix_tokens": 8}, "without a session"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: object, words: str) -> None:
    with pytest.raises(BadTrace, match=words) as refused:
        read_trace(file_of(tmp_path, GOOD, "", line))
    assert "line 3" in str(refused.value)


def test_an_empty_file_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="no requests"):
        read_trace(file_of(tmp_path, ""))


def test_mooncakes_traces_are_read_with_the_blocks_that_were_there_before(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 1300, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 3000, "input_length": 1300, "output_length": 5, "hash_ids": [1, 2, 9]},
        {"timestamp": 4000, "input_length": 600, "output_length": 5, "hash_ids": [2, 3]},
    ]
    found = read_trace(file_of(tmp_path, *rows))
    assert [(one.arrival_s, one.prefix_tokens) for one in found] == [(0.0, 0), (2.0, 1024), (3.0, 0)]
    assert found[0].session == found[1].session != found[2].session


def access_line(ended_unix_s: float, **fields: object) -> str:
    """A line as an ingress logs it."""
    record = logging.LogRecord("serve_app.access", logging.INFO, "", 0, "request", None, None)
    record.created, record.msecs = ended_unix_s, ended_unix_s % 1 * 1000
    usual = {"status": 200, "outcome": "completed", "route": "/v1/chat/completions", "prompt_tokens": 900}
    vars(record).update({**usual, "output_tokens": 40, "total_s": 2.0, "first_token_s": 0.5, **fields})
    return FieldsFormatter().format(record)


def test_the_access_log_becomes_a_trace(tmp_path: Path) -> None:
    lines = [
        access_line(1_700_000_010.0, session="s", cached_tokens=512, key="k", replica=["a", "b"]),
        "something else",
        access_line(1_700_000_011.0, total_s=10.0),
        access_line(1_700_000_012.0, route="/health", prompt_tokens=0, output_tokens=0, first_token_s=None),
        access_line(1_700_000_013.0, status=429, output_tokens=0, first_token_s=None, total_s=0.0),
    ]
    recording = read_access_log([file_of(tmp_path, *lines)])
    assert recording.begin_unix_s == pytest.approx(1_700_000_001.0)
    assert [replace(one, arrival_s=round(one.arrival_s, 3)) for one in recording.requests] == [
        TraceRequest(0.0, 900, 40),
        TraceRequest(7.0, 900, 40, "s", 512, "k"),
        TraceRequest(12.0, 900, 1),
    ]
    assert [(one.ttft_s, one.replica) for one in recording.served] == [(0.5, ""), (0.5, "b"), (None, "")]


def test_a_broken_line_of_the_access_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="line 2"):
        read_access_log([file_of(tmp_path, "other", access_line(1e9)[:-3])])


@pytest.mark.parametrize("name", GENERATORS)
def test_a_standard_trace_is_the_same_for_the_same_seed(name: str) -> None:
    requests = GENERATORS[name](3)
    assert requests == GENERATORS[name](3)
    assert requests[:100] != GENERATORS[name](4)[:100]
    assert all(before.arrival_s <= after.arrival_s for before, after in pairwise(requests))
    assert all(one.prefix_tokens < one.prompt_tokens and one.output_tokens > 0 for one in requests)


def test_the_load_test_replays_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    write_trace(file, [TraceRequest(0.0, 600, 5, "s"), TraceRequest(1.5, 1100, 6, "s", 605), TraceRequest(2.0, 50, 7)])
    first, second, other = loadtest_trace(DatasetSpec(), None, 0, file=str(file), speed=1.0)
    assert (first.prompt_tokens, second.output_tokens, second.at_s) == (600, 6, 1.5)
    assert second.text.startswith(first.text[:2000])
    assert (first.headers, other.headers) == ({"x-session-id": "s"}, {})
