"""Fixtures of the load test's own tests: a mock server on loopback, and a run against it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.api.requests import Api, BodySpec
from loadtest.data.prompt import Prompt
from loadtest.data.tokenizer import PromptTokenizer, load_tokenizer
from loadtest.http.address import parse_url
from loadtest.http.pool import Endpoint
from loadtest.load.runner import NullObserver, Observer, RunResult, run_here
from loadtest.load.schedule import LoadSchedule
from loadtest.load.worker import WorkerJob
from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer

ROOT = Path(__file__).parents[2]
FIRST_LINE = "mock server at "
QUICK = MockConfig(first_s=0.005, gap_s=0.001)
StartMock = Callable[[MockConfig], Awaitable[MockServer]]
RunJob = Callable[..., Awaitable[RunResult]]


@contextmanager
def mock_process(*flags: str) -> Iterator[str]:
    """A mock server in a process of its own, as `loadtest mock` starts it; yields its URL."""
    command = [sys.executable, "-m", "loadtest", "mock", "--port", "0", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().removeprefix(FIRST_LINE).split(",")[0]
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def tokenizer() -> PromptTokenizer:
    """The demo model's."""
    return load_tokenizer(str(ROOT / "models" / "step-tiny"))


@pytest.fixture(scope="module")
def mock_url() -> Iterator[str]:
    """A fast mock server."""
    with mock_process("--first-ms", "5", "--gap-ms", "1") as url:
        yield url


@pytest.fixture
async def start_mock() -> AsyncIterator[StartMock]:
    """Starts mock servers and stops them at the end."""
    async with AsyncExitStack() as stack:

        async def start(config: MockConfig = QUICK) -> MockServer:
            server = MockServer(config)
            server.keep_requests = True
            return await stack.enter_async_context(server)

        yield start


@pytest.fixture
def run_job() -> RunJob:
    """Runs prompts against a URL in this process."""

    async def run(
        url: str,
        prompts: Sequence[Prompt],
        *,
        api: Api = Api.CHAT,
        load: LoadSchedule | None = None,
        observer: Observer | None = None,
        **changes: object,
    ) -> RunResult:
        load = load or LoadSchedule(4)
        job = WorkerJob(prompts=prompts, body_spec=BodySpec(api, "mock", ignore_eos=True), load=load)
        return await run_here(replace(job, **changes), endpoint_of(url), observer or NullObserver())

    return run


def endpoint_of(url: str) -> Endpoint:
    """The loopback endpoint of a URL."""
    return Endpoint(parse_url(url), "127.0.0.1")
