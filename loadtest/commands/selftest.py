"""What does this client add? It is run against the mock server, whose times are known, and its own cost is counted.

The mock runs in a process of its own and says how late it was itself; what is left of the measured time after the
planned time and the mock's lateness is the client's doing (and the operating system's).
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
from loadtest.load.run import NullObserver, run_here
from loadtest.load.schedule import LoadSchedule
from loadtest.load.self_check import cpu_s
from loadtest.load.worker import WorkerJob
from loadtest.load.worker_processes import run_in_workers
from loadtest.metrics.vllm_metrics import compute_vllm_metrics
from loadtest.report.files import plain, write_json

FIRST_MS = 50.0
GAP_MS = 20.0
PROMPT_BYTES = 32 * 1024
"""About the published 8,192 tokens."""
ADDED_TTFT_LIMIT_MS = 5.0


OTHER_CLIENT_FIELDS = ("ttft_mean_ms", "gap_p99_ms", "cpu_us_per_chunk", "added_ttft_ms")


class OtherClient(msgspec.Struct, frozen=True):
    """What another client says of itself in one line of JSON. Times in ms."""

    ttft_mean_ms: float
    gap_p99_ms: float
    cpu_us_per_chunk: float
    failed: int = 0
    added_ttft_ms: float = 0.0


@dataclass(frozen=True)
class SelfTestResult:
    """The client at one number of streams. Times in ms."""

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
    """Another client under the same load, right after."""

    @property
    def fit(self) -> bool:
        """Whether the client can be trusted at this many streams."""
        return not self.failed and self.added_ttft_ms <= ADDED_TTFT_LIMIT_MS


class _MockLateness(msgspec.Struct):
    first_mean_ms: float
    first_p99_ms: float
    chunk_mean_ms: float
    chunk_p99_ms: float


@asynccontextmanager
async def mock_process(*flags: str) -> AsyncIterator[str]:
    """The mock server in its own process; gives its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", "mock", "--port", "0", *flags, stdout=asyncio.subprocess.PIPE
    )
    try:
        said = (await process.stdout.readline()).decode() if process.stdout else ""
        if "http://" not in said:
            raise TargetError("the mock server did not start")
        yield said.split()[3].rstrip(",")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def selftest_prompts(streams: int, chunks: int) -> list[Prompt]:
    """Two waves: the first meets a cold client, the second a running one."""
    return [Prompt(text="w" * PROMPT_BYTES, output_tokens=chunks) for _ in range(2 * streams)]


async def read_client(url: str, streams: int, chunks: int, workers: int) -> SelfTestResult:
    """Run this client at one number of streams."""
    address = parse_url(url)
    endpoint = Endpoint(address, "127.0.0.1")
    job = WorkerJob(
        prompts=selftest_prompts(streams, chunks),
        body_spec=BodySpec(Api.CHAT, "mock", ignore_eos=True),
        load=LoadSchedule(max_inflight=streams),
    )
    await lateness(endpoint)  # forget what came before
    before_s = cpu_s()
    if workers > 1:
        finished = await run_in_workers(job, endpoint, workers, NullObserver())
    else:
        finished = await run_here(job, endpoint, NullObserver())
    records = finished.run.records
    vllm_metrics = compute_vllm_metrics(records, finished.run.duration_s, [99.0])
    spent_s = cpu_s() - before_s + (sum(check.cpu_s for check in finished.checks) if workers > 1 else 0.0)
    late = await lateness(endpoint)
    good = [record for record in records if record.ok]
    ttfts = np.asarray([ttft_s(record) for record in good] or [0.0]) * 1e3
    # The first gap is the one between the role-only event and the text beside it in the same read.
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
        cpu_us_per_chunk=spent_s / max(count, 1) * 1e6,
        cpu_ratio=max(check.cpu_ratio for check in finished.checks),
        loop_lag_p99_ms=max(check.loop_lag_p99_ms for check in finished.checks),
    )


async def lateness(endpoint: Endpoint) -> _MockLateness:
    """The mock's own lateness since it was last asked."""
    pool = Pool(endpoint)
    try:
        reply = await get(pool, endpoint.address, "/mock/lateness", {})
    finally:
        pool.close()
    return msgspec.json.decode(reply.body, type=_MockLateness)


async def read_other(command: str, url: str, streams: int, chunks: int) -> OtherClient:
    """Run another client: `command URL STREAMS CHUNKS`, whose last line of output is an `Other` in JSON."""
    endpoint = Endpoint(parse_url(url), "127.0.0.1")
    await lateness(endpoint)
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command), url, str(streams), str(chunks), stdout=asyncio.subprocess.PIPE
        )
    except OSError as bad:
        raise DataError(f"cannot run {command!r} ({bad.strerror or bad})", "Check --against") from bad
    said, _ = await process.communicate()
    late = await lateness(endpoint)
    try:
        other = msgspec.json.decode(said.strip().rpartition(b"\n")[2], type=OtherClient)
    except msgspec.DecodeError as bad:
        raise DataError(f"{command!r} did not end with its figures ({bad})", "Run it by itself to see why") from bad
    return msgspec.structs.replace(other, added_ttft_ms=other.ttft_mean_ms - FIRST_MS - late.first_mean_ms)


async def measure_client(
    streams: Sequence[int], chunks: int, *, workers: int = 1, against: str | None = None, rounds: int = 1
) -> list[SelfTestResult]:
    """One reading per number of streams, in the order given; `against` is another client's command.

    Of several rounds, in which the two clients take turns, it is the medians.
    """
    flags = ["--first-ms", str(FIRST_MS), "--gap-ms", str(GAP_MS)]
    found: dict[int, list[SelfTestResult]] = {number: [] for number in streams}
    async with mock_process(*flags) as url:
        for _ in range(rounds):
            for number, results in found.items():
                result = await read_client(url, number, chunks, workers)
                other = await read_other(against, url, number, chunks) if against else None
                results.append(replace(result, other=other))
    return [_middle(results) for results in found.values()]


def _middle(results: Sequence[SelfTestResult]) -> SelfTestResult:
    """Medians of the figures; a failure in any round counts."""
    others = [result.other for result in results if result.other is not None]
    return replace(
        results[0],
        **_medians(results, [field.name for field in fields(SelfTestResult) if field.type == "float"]),
        failed=max(result.failed for result in results),
        other=msgspec.structs.replace(others[0], **_medians(others, OTHER_CLIENT_FIELDS)) if others else None,
    )


def _medians(results: Sequence[object], names: Sequence[str]) -> dict[str, Any]:
    return {name: float(np.median([getattr(result, name) for result in results])) for name in names}


def selftest_text(results: Sequence[SelfTestResult]) -> str:
    """A table for the terminal."""
    head = (
        f"client self-test: {FIRST_MS:g} ms to the first token, {GAP_MS:g} ms between chunks, "
        f"{PROMPT_BYTES // 1024} KB prompts, mock server on this machine\n"
        f"{'streams':>8} {'TTFT mean':>10} {'mock late':>10} {'client adds':>12} {'gap adds':>9} {'gap p99':>8} "
        f"{'CPU/chunk':>10} {'CPU':>5} {'loop lag p99':>13}"
    )
    lines = [head]
    for r in results:
        verdict = "ok" if r.fit else f"{r.failed} failed" if r.failed else "use --workers"
        gap_adds_ms = r.gap_mean_ms - GAP_MS
        lines.append(
            f"{r.streams:>8} {r.ttft_mean_ms:>7.1f} ms {r.mock_first_late_ms:>7.1f} ms {r.added_ttft_ms:>9.1f} ms "
            f"{gap_adds_ms:>6.1f} ms {r.gap_p99_ms:>5.1f} ms {r.cpu_us_per_chunk:>7.1f} us {r.cpu_ratio:>4.0%} "
            f"{r.loop_lag_p99_ms:>10.1f} ms  {verdict}"
        )
    lines += [_beside(result.streams, result, result.other) for result in results if result.other is not None]
    return "\n".join(lines)


def _beside(streams: int, ours: SelfTestResult, other: OtherClient) -> str:
    return (
        f"the other client at {streams} streams: adds {other.added_ttft_ms:.1f} ms to TTFT, "
        f"{other.cpu_us_per_chunk:.1f} us of CPU a chunk; this one uses "
        f"{ours.cpu_us_per_chunk / other.cpu_us_per_chunk:.2f} of that"
    )


def as_json(results: Sequence[SelfTestResult]) -> list[Json]:
    """For files."""
    return [plain(msgspec.to_builtins(result)) for result in results]


async def selftest(
    streams: Sequence[int], chunks: int, *, workers: int, against: str | None, rounds: int, json_file: str | None
) -> int:
    """Measure this client. Returns 1 where it is not fit at some number of streams."""
    results = await measure_client(streams, chunks, workers=workers, against=against, rounds=rounds)
    print(selftest_text(results))
    if json_file:
        write_json(Path(json_file), as_json(results))
    return 0 if all(result.fit for result in results) else 1
