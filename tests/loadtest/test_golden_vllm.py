"""The same bytes at the same times, fed to vLLM's client and to ours, give the same figures to the last bit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.api.event_parser import parse_openai
from loadtest.api.record import Record, itl_s, latency_s, ttft_s
from loadtest.api.responses import parse_response
from loadtest.http.connection import Body, Exchange
from loadtest.http.event_stream import ChunkDecoder
from loadtest.metrics.vllm_metrics import Stats, VllmMetrics, compute_vllm_metrics
from loadtest.mock.answers import WRITERS, MockConfig, MockRequest

pytestmark = pytest.mark.engine
Reads = list[tuple[int, bytes]]
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class ScriptedSession:
    """Stands where aiohttp's session stands, and moves the clock to each read's time before handing it over."""

    def __init__(self, reads: Reads, clock: SimpleNamespace) -> None:
        self._reads = reads
        self._clock = clock
        self.status = 200
        self.reason = "OK"
        self.content = self

    def post(self, **_: object) -> ScriptedSession:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def iter_any(self) -> AsyncIterator[bytes]:
        for time_ns, data in self._reads:
            self._clock.now_ns = time_ns
            yield data


def theirs(api: str, reads: Reads, start_ns: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's output object for one scripted response."""
    from vllm.benchmarks.lib import endpoint_request_func as client

    clock = SimpleNamespace(now_ns=start_ns)
    monkeypatch.setattr(client.time, "perf_counter", lambda: clock.now_ns / 1e9)
    asked = client.RequestFuncInput(prompt="p", api_url=f"http://x{PATHS[api]}", prompt_len=3, output_len=9, model="m")
    ask = client.ASYNC_REQUEST_FUNCS["openai-chat" if api == "chat" else "openai"]
    try:
        return asyncio.run(ask(asked, ScriptedSession(reads, clock)))
    finally:
        monkeypatch.undo()


def ours(reads: Reads, start_ns: int) -> Record:
    """Our record for the same response."""
    loop = asyncio.new_event_loop()
    exchange = Exchange(loop.create_future(), start_ns=start_ns, status=200, body=Body.UNTIL_CLOSE)
    loop.close()
    exchange.read_ns = [time_ns for time_ns, _ in reads]
    exchange.reads = [data for _, data in reads]
    exchange.end_ns = exchange.read_ns[-1] if reads else start_ns
    record = Record(index=0, planned_prompt_tokens=3, planned_output_tokens=9)
    for _ in parse_response(record, exchange, parse_openai, forced_length=False, keep_text=True):
        pass
    return record


def body_of(api: str, tokens: int, tokens_per_chunk: int, reasoning: int) -> bytes:
    """A whole answer as a server sends it, with its HTTP chunks taken off."""
    config = MockConfig(tokens_per_chunk=tokens_per_chunk, reasoning_chunks=reasoning, model="m")
    asked = MockRequest(model="m", prompt="x" * 40, max_tokens=tokens)
    layer = ChunkDecoder()
    return b"".join(layer.feed(chunk) for chunk in WRITERS[PATHS[api]](config, asked))


@st.composite
def responses(draw: st.DrawFn) -> tuple[str, Reads, int]:
    """An answer cut into reads anywhere, at increasing times."""
    api = draw(st.sampled_from(sorted(PATHS)))
    body = body_of(api, draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(0, 3)))
    # vLLM's client strips each read: one that ends in "data: " makes it fail the request, so cuts keep off spaces.
    places = [at for at in range(1, len(body)) if b" " not in body[at - 1 : at + 1]]
    cuts = sorted(draw(st.sets(st.sampled_from(places), max_size=15)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    start_ns = draw(st.integers(10**9, 10**15))
    gaps = draw(st.lists(st.integers(1, 10**9), min_size=len(pieces), max_size=len(pieces)))
    times = [start_ns + sum(gaps[: index + 1]) for index in range(len(pieces))]
    return api, list(zip(times, pieces, strict=True)), start_ns


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(responses())
def test_one_response_has_the_same_times_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, response: tuple[str, Reads, int]
) -> None:
    api, reads, start_ns = response
    their, our = theirs(api, reads, start_ns, monkeypatch), ours(reads, start_ns)
    assert their.success and our.ok, (their.error, our.error)
    assert ttft_s(our) == their.ttft
    assert itl_s(our).tolist() == their.itl
    assert latency_s(our) == their.latency
    assert our.vllm_output_tokens == their.output_tokens
    assert our.vllm_prompt_tokens == their.prompt_len


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(responses(), min_size=1, max_size=8), st.floats(0.5, 500))
def test_a_whole_run_has_the_same_figures_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, run: list[tuple[str, Reads, int]], duration_s: float
) -> None:
    from vllm.benchmarks.serve import calculate_metrics

    base = 10**12  # one run, one clock: starts close to each other
    run = [
        (api, [(base + t - start, data) for t, data in reads], base + index)
        for index, (api, reads, start) in enumerate(run)
    ]
    outputs = [theirs(api, reads, start, monkeypatch) for api, reads, start in run]
    records = [ours(reads, start) for _, reads, start in run]
    percentiles = [50.0, 95.0, 99.0, 99.9]
    limits = {"ttft": 300.0, "tpot": 200.0, "e2el": 4000.0}
    their, _ = calculate_metrics([], outputs, duration_s, None, percentiles, limits)
    our = compute_vllm_metrics(records, duration_s, percentiles, limits)
    assert_same(our, their, percentiles)


def assert_same(our: VllmMetrics, their: Any, percentiles: list[float]) -> None:
    assert our.completed == their.completed
    assert our.failed == their.failed
    assert our.total_input_tokens == their.total_input
    assert our.total_output_tokens == their.total_output
    for name in ("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"):
        assert getattr(our, name) == getattr(their, name), name
    assert our.max_output_tokens_per_s == their.max_output_tokens_per_s
    assert our.max_concurrent_requests == their.max_concurrent_requests
    for name in ("ttft", "tpot", "itl", "e2el"):
        spread: Stats = getattr(our, name)
        assert spread.mean == getattr(their, f"mean_{name}_ms"), name
        assert spread.median == getattr(their, f"median_{name}_ms"), name
        assert spread.std == getattr(their, f"std_{name}_ms"), name
        assert [spread.percentiles[p] for p in percentiles] == [v for _, v in getattr(their, f"percentiles_{name}_ms")]


@pytest.mark.parametrize("api", sorted(PATHS))
def test_usage_missing_means_one_token_for_both(monkeypatch: pytest.MonkeyPatch, api: str) -> None:
    body = body_of(api, 5, 1, 0)
    body = b"\n\n".join(event for event in body.split(b"\n\n") if b'"usage"' not in event)
    reads = [(2 * 10**9 + index, event + b"\n\n") for index, event in enumerate(body.rstrip().split(b"\n\n"))]
    their, our = theirs(api, reads, 10**9, monkeypatch), ours(reads, 10**9)
    assert (their.output_tokens or 1) == our.output_tokens_or_one() == 1
    assert our.output_tokens == 5 and our.tokens_from == "chunks"


def test_a_read_that_ends_after_the_field_name_fails_with_vllms_client_and_not_with_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = body_of("chat", 3, 1, 0)
    cut = body.rindex(b"data: {") + len(b"data: ")
    reads = [(2 * 10**9, body[:cut]), (3 * 10**9, body[cut:])]
    assert not theirs("chat", reads, 10**9, monkeypatch).success
    assert ours(reads, 10**9).ok


def test_an_error_in_the_stream_is_a_success_to_vllm_and_a_failure_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    events = body_of("chat", 5, 1, 0).split(b"\n\n")[:3]
    events.append(b'data: {"error":{"message":"engine died","code":500}}')
    reads = [(2 * 10**9 + index, event + b"\n\n") for index, event in enumerate(events)]
    their, our = theirs("chat", reads, 10**9, monkeypatch), ours(reads, 10**9)
    assert their.success and our.vllm_success
    assert our.failed and "engine died" in our.error and "engine died" in our.body
