"""What `bench.hostile` measures: the gaps of the streams beside a request, and whether a trial holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import httpx
import psutil
import pytest

from bench.hostile.__main__ import report
from bench.hostile.requests import (
    CHAT,
    COMPLETIONS,
    HostileRequest,
    harmless_body,
    with_grammars,
    with_numbers,
    with_tools,
)
from bench.hostile.streams import Streams, read_stream
from bench.hostile.trial import Trial, p99, try_request
from bench.response_lines import DATA, DONE, RequestFailed, response_lines
from bench.servers import Server
from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer

MOCK = MockConfig(first_s=0.001, gap_s=0.001)
TRIAL = Trial("x", CHAT, 400, "", 0.1, 1, 2, 0.05, 0.06, 0.07, 0, holds=True)


def lines_of(url: str, model: str) -> list[bytes]:
    body = harmless_body(COMPLETIONS, max_tokens=4) | {"model": model, "stream": True}
    return list(response_lines(url, COMPLETIONS, body, 10.0))


async def test_the_lines_of_a_response_come_without_empty_ones() -> None:
    async with MockServer(MOCK) as server:
        lines = await asyncio.to_thread(lines_of, server.url, "mock")
    assert all(line.startswith(DATA) for line in lines[:-1])
    assert lines[-1].startswith(DONE)


async def test_a_refused_request_and_a_closed_port_have_failed() -> None:
    async with MockServer(MOCK) as server:
        url = server.url
        with pytest.raises(RequestFailed, match="404"):
            await asyncio.to_thread(lines_of, url, "unknown")
    with pytest.raises(RequestFailed, match="ConnectionRefused"):
        await asyncio.to_thread(lines_of, url, "mock")


async def test_a_stream_has_a_gap_before_each_event_but_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    async with MockServer(replace(MOCK, tokens_per_chunk=100)) as server:
        assert await asyncio.to_thread(read_stream, server.url, "mock", 0)
    gaps_s = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(gaps_s) == 6  # of 600 tokens in six events, and the usage
    assert all(gap_s >= 0 for gap_s in gaps_s)


@pytest.mark.parametrize("fault", ["", "cut"])
async def test_streams_of_another_process_bring_gaps_and_broken_streams(fault: str) -> None:
    async with MockServer(replace(MOCK, tokens_per_chunk=100, fail_every=1, fault=fault)) as server:
        streams = Streams(int(server.url.rpartition(":")[2]), "mock")
        async with streams.run(2):
            async with asyncio.timeout(30):
                while not (streams.broken if fault else streams.gaps):  # noqa: ASYNC110  # another process sets no event
                    await asyncio.sleep(0)
    assert bool(streams.broken) == bool(fault)
    gaps_s = streams.between(0.0, float("inf"))
    assert gaps_s == sorted(gaps_s)
    assert streams.between(0.0, 0.0) == []


class NoProcesses(Server):
    """A server whose processes are not looked for."""

    def __init__(self) -> None:
        pass

    def processes(self) -> list[psutil.Process]:
        return []


@pytest.mark.parametrize(("model", "may_be_served", "status", "holds"), [
    ("unknown", False, 404, True), ("mock", True, 200, True), ("mock", False, 200, False),
])  # fmt: skip
async def test_a_trial_holds_if_the_request_is_refused_or_may_be_served(
    model: str, *, may_be_served: bool, status: int, holds: bool
) -> None:
    hostile = HostileRequest("x", CHAT, harmless_body(CHAT), may_be_served)
    async with MockServer(MOCK) as mock, httpx.AsyncClient(base_url=mock.url, trust_env=False) as http:
        streams = Streams(0, model)
        trial = await try_request(hostile, NoProcesses(), streams, http, window_s=0.01)
    assert (trial.status, trial.holds, trial.deaths) == (status, holds, 0)


@pytest.mark.parametrize(("gaps_s", "expected_s"), [([], 0.0), ([1.0], 1.0), ([float(n) for n in range(200)], 198.0)])
def test_the_99th_percentile_is_of_sorted_gaps(gaps_s: Sequence[float], expected_s: float) -> None:
    assert p99(gaps_s) == expected_s


def test_the_report_marks_trials_that_do_not_hold() -> None:
    text = report([TRIAL, replace(TRIAL, deaths=1, holds=False)])
    assert text.count("<-- does not hold") == 1
    assert "1 of 2 hold; p99 gap of the streams, median over all: 50 ms before, 60 ms during" in text
    assert report([]) == "no request was sent"


def test_no_two_kinds_on_an_api_have_the_same_name() -> None:
    found = [(hostile.name, hostile.path) for hostile in (*with_grammars(), *with_tools(), *with_numbers())]
    assert len(set(found)) == len(found)
    assert {"regex that does not compile", "tool with an explosive schema", "n of 10^6"} <= {name for name, _ in found}
