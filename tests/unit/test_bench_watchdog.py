"""The watchdog's suite: when a case holds, and which requests failed."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bench.watchdog import service
from bench.watchdog.clients import ClientRequest, Endpoint
from bench.watchdog.outcome import CaseOutcome, table


@pytest.mark.parametrize("harm", ["kills", "deaths", "lost"])
def test_a_slow_case_holds_only_without_kills_deaths_and_lost_requests(harm: str) -> None:
    assert CaseOutcome("slow", longest_silence_s=60.0).holds
    assert not CaseOutcome("slow", **{harm: 1}).holds


@pytest.mark.parametrize(("found_s", "holds"), [(None, False), (29.0, True), (31.0, False)])
def test_a_hang_case_holds_only_if_it_was_found_in_time(found_s: float | None, *, holds: bool) -> None:
    outcome = CaseOutcome("hang", kills=1, is_hang=True, found_s=found_s, limit_s=30.0)
    assert outcome.holds is holds


def test_a_note_does_not_break_the_table() -> None:
    lines = table([CaseOutcome("one", note="a|b")]).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_cases_are_named_by_their_settings() -> None:
    names = service.names(service.CaseSettings(minutes=5, streams=8, beside=2, pause_s=3))
    assert "cold: 8 streams for 5 min" in names
    assert "cold: SIGSTOP of everything for 3 s" in names
    assert len(names) == len(set(names))


class FailingStream(BaseHTTPRequestHandler):
    """Answers with a stream that has an error event after its first event, and ends as vLLM ends it."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'data: {"choices": []}\n\ndata: {"error": {"message": "gone"}}\n\ndata: [DONE]\n\n')

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_a_stream_with_an_error_event_has_failed_even_with_an_end_marker() -> None:
    with HTTPServer(("127.0.0.1", 0), FailingStream) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        endpoint = Endpoint(server.server_port)
        assert endpoint.try_send(ClientRequest("/v1/completions", {"stream": True})) is None
        thread.join()
    assert "gone" in endpoint.failures[0]
