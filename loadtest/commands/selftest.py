"""`loadtest selftest`: what this client adds to a server's times, and what it costs.

It runs against the mock server, whose times are known. The mock runs in a process of its own and reports how late it
was itself. What remains of the measured time after the planned time and the mock's lateness was added by the client
(and by the operating system).
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadtest.api.record import itl_s, ttft_s
from loadtest.api.requests import Api, BodySpec
from loadtest.data.prompt import Json, Prompt
from loadtest.errors import DataError, TargetError
from loadtest.http.address import parse_url
from loadtest.http.pool import Endpoint, Pool
from loadtest.http.probe import get
from loadtest.load.runner import NullObserver
from loadtest.load.schedule import LoadSchedule
from loadtest.load.self_check import cpu_s
from loadtest.load.worker import WorkerJob
from loadtest.load.worker_processes import run_job
from loadtest.metrics.vllm_metrics import compute_vllm_metrics
from loadtest.report.files import plain, write_json
from loadtest.report.table import Table, text_table

FIRST_MS = 50.0
GAP_MS = 20.0
PROMPT_BYTES = 32 * 1024
"""About the published 8,192 tokens."""
ADDED_TTFT_LIMIT_MS = 5.0


OTHER_CLIENT_FIELDS = ("ttft_mean_ms", "gap_p99_ms", "cpu_us_per_chunk", "added_ttft_ms")


class OtherClient(msgspec.Struct, frozen=True):
    """Figures that another client prints as one line of JSON. Times in ms."""

    ttft_mean_ms: float
    gap_p99_ms: float
    cpu_us_per_chunk: float
    failed: int = 0
    added_ttft_ms: float = 0.0


@dataclass(frozen=True)
class SelfTestResult:
    """The client's figures at one number of streams. Times in ms."""

    streams: int
    chunks: int
    failed: int
    ttft_mean_ms: float
    ttft_p99_ms: float
    mock_first_late_ms: float
    added_ttft_ms: float
    gap_mean_ms: float
    gap_p99_ms: float
    mock_chunk_late_p99_ms: float
    cpu_us_per_chunk: float
    cpu_ratio: float
    loop_lag_p99_ms: float
    other: OtherClient | None = None
    """Another client under the same load, immediately afterwards."""

    @property
    def within_limits(self) -> bool:
        """Whether the client can be trusted at this number of streams."""
        return not self.failed and self.added_ttft_ms <= ADDED_TTFT_LIMIT_MS


class _MockLateness(msgspec.Struct):
    first_mean_ms: float
    first_p99_ms: float
    chunk_mean_ms: float
    chunk_p99_ms: float


@asynccontextmanager
async def mock_process(*flags: str) -> AsyncIterator[str]:
    """Start the mock server in a process of its own; yields its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", "mock", "--port", "0", *flags, stdout=asyncio.subprocess.PIPE
    )
    try:
        line = (await process.stdout.readline()).decode() if process.stdout else ""
        if "http://" not in line:
            raise TargetError("the mock server did not start", "Run python -m loadtest mock to see why")
        yield line.split()[3].rstrip(",")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def selftest_prompts(streams: int, chunks: int) -> list[Prompt]:
    """Two waves: the client is cold in the first and warm in the second."""
    return [Prompt(text="w" * PROMPT_BYTES, output_tokens=chunks) for _ in range(2 * streams)]


async def measure_this_client(url: str, streams: int, chunks: int, workers: int) -> SelfTestResult:
    """Run this client at one number of streams."""
    address = parse_url(url)
    endpoint = Endpoint(address, "127.0.0.1")
    job = WorkerJob(
        prompts=selftest_prompts(streams, chunks),
        body_spec=BodySpec(Api.CHAT, "mock", ignore_eos=True),
        load=LoadSchedule(max_inflight=streams),
    )
    await take_mock_lateness(endpoint)  # discard what was recorded before
    before_s = cpu_s()
    result = await run_job(job, endpoint, workers, NullObserver())
    records = result.run.records
    vllm_metrics = compute_vllm_metrics(records, result.run.duration_s, [99.0])
    client_cpu_s = cpu_s() - before_s + (sum(check.cpu_s for check in result.checks) if workers > 1 else 0.0)
    late = await take_mock_lateness(endpoint)
    good = [record for record in records if record.ok]
    ttfts = np.asarray([ttft_s(record) for record in good] or [0.0]) * 1e3
    # The first gap lies between the event with the role and the first text, which arrive in the same read.
    gaps = np.concatenate([itl_s(record)[1:] for record in good] or [np.zeros(1)]) * 1e3
    count = sum(len(record.chunk_ns) for record in records)
    return SelfTestResult(
        streams=streams,
        chunks=count,
        failed=vllm_metrics.failed,
        ttft_mean_ms=float(ttfts.mean()),
        ttft_p99_ms=float(np.percentile(ttfts, 99)),
        mock_first_late_ms=late.first_mean_ms,
        added_ttft_ms=float(ttfts.mean()) - FIRST_MS - late.first_mean_ms,
        gap_mean_ms=float(gaps.mean()),
        gap_p99_ms=float(np.percentile(gaps, 99)),
        mock_chunk_late_p99_ms=late.chunk_p99_ms,
        cpu_us_per_chunk=client_cpu_s / max(count, 1) * 1e6,
        cpu_ratio=max(check.cpu_ratio for check in result.checks),
        loop_lag_p99_ms=max(check.loop_lag_p99_ms for check in result.checks),
    )


async def take_mock_lateness(endpoint: Endpoint) -> _MockLateness:
    """How late the mock itself was since the last call."""
    pool = Pool(endpoint)
    try:
        reply = await get(pool, endpoint.address, "/mock/lateness", {})
    finally:
        pool.close()
    return msgspec.json.decode(reply.body, type=_MockLateness)


async def measure_other_client(command: str, url: str, streams: int, chunks: int) -> OtherClient:
    """Run another client as `command URL STREAMS CHUNKS`. Its last line of output must be an `OtherClient` as JSON."""
    endpoint = Endpoint(parse_url(url), "127.0.0.1")
    await take_mock_lateness(endpoint)
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command), url, str(streams), str(chunks), stdout=asyncio.subprocess.PIPE
        )
    except OSError as bad:
        raise DataError(f"cannot run {command!r} ({bad.strerror or bad})", "Check --against") from bad
    output, _ = await process.communicate()
    late = await take_mock_lateness(endpoint)
    try:
        other = msgspec.json.decode(output.strip().rpartition(b"\n")[2], type=OtherClient)
    except msgspec.DecodeError as bad:
        raise DataError(
            f"{command!r} did not print its figures as its last line ({bad})", "Run it by itself to see why"
        ) from bad
    return msgspec.structs.replace(other, added_ttft_ms=other.ttft_mean_ms - FIRST_MS - late.first_mean_ms)


@dataclass(frozen=True)
class SelfTestSpec:
    """What to measure."""

    streams: Sequence[int] = (32, 128, 512, 1024)
    chunks: int = 150
    workers: int = 1
    against: str | None = None
    """Another client's command."""
    rounds: int = 1
    """In several rounds, in which the two clients take turns, the figures are medians."""
    json: str | None = None


async def measure_clients(spec: SelfTestSpec) -> list[SelfTestResult]:
    """One result per number of streams, in the order given."""
    flags = ["--first-ms", str(FIRST_MS), "--gap-ms", str(GAP_MS)]
    found: dict[int, list[SelfTestResult]] = {number: [] for number in spec.streams}
    async with mock_process(*flags) as url:
        for _ in range(spec.rounds):
            for number, results in found.items():
                result = await measure_this_client(url, number, spec.chunks, spec.workers)
                other = await measure_other_client(spec.against, url, number, spec.chunks) if spec.against else None
                results.append(replace(result, other=other))
    return [median_result(results) for results in found.values()]


def median_result(results: Sequence[SelfTestResult]) -> SelfTestResult:
    """The medians of the figures, and the most failures of any round."""
    others = [result.other for result in results if result.other is not None]
    return replace(
        results[0],
        **_medians(results, [field.name for field in fields(SelfTestResult) if field.type == "float"]),
        failed=max(result.failed for result in results),
        other=msgspec.structs.replace(others[0], **_medians(others, OTHER_CLIENT_FIELDS)) if others else None,
    )


def _medians(results: Sequence[object], names: Sequence[str]) -> dict[str, Any]:
    return {name: float(np.median([getattr(result, name) for result in results])) for name in names}


def selftest_table(results: Sequence[SelfTestResult]) -> Table:
    """The figures for the terminal."""
    head = (
        "streams", "TTFT mean", "mock late", "client adds", "gap adds", "gap P99", "CPU per chunk", "CPU",
        "loop lag P99", "",
    )  # fmt: skip
    rows = tuple(
        (
            str(r.streams), f"{r.ttft_mean_ms:.1f} ms", f"{r.mock_first_late_ms:.1f} ms", f"{r.added_ttft_ms:.1f} ms",
            f"{r.gap_mean_ms - GAP_MS:.1f} ms", f"{r.gap_p99_ms:.1f} ms", f"{r.cpu_us_per_chunk:.1f} us",
            f"{r.cpu_ratio:.0%}", f"{r.loop_lag_p99_ms:.1f} ms",
            "ok" if r.within_limits else f"{r.failed} failed" if r.failed else "use --workers",
        )
        for r in results
    )  # fmt: skip
    notes = [_other_client_note(result, result.other) for result in results if result.other is not None]
    title = (
        f"Client self-test: {FIRST_MS:g} ms to the first token, {GAP_MS:g} ms between chunks, "
        f"{PROMPT_BYTES // 1024} KB prompts, mock server on this machine"
    )
    return Table(title, head, rows, tuple(notes))


def _other_client_note(result: SelfTestResult, other: OtherClient) -> str:
    return (
        f"the other client at {result.streams} streams adds {other.added_ttft_ms:.1f} ms to TTFT and uses "
        f"{other.cpu_us_per_chunk:.1f} us of CPU per chunk; this client uses "
        f"{result.cpu_us_per_chunk / other.cpu_us_per_chunk:.2f} times that"
    )


async def selftest(spec: SelfTestSpec) -> int:
    """Measure this client. Returns 1 if it exceeds the limits at some number of streams."""
    results = await measure_clients(spec)
    print(text_table(selftest_table(results)))
    if spec.json:
        as_json: list[Json] = [plain(msgspec.to_builtins(result)) for result in results]
        write_json(Path(spec.json), as_json)
    return 0 if all(result.within_limits for result in results) else 1
