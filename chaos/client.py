"""The HTTP clients of a run, and the baseline: every request sent once without a fault."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx

from chaos.options import BadOptions, ChaosOptions
from chaos.request_spec import RequestSpec
from chaos.stream import OnText, Recording, send_request

T = TypeVar("T")

PROBE_TIMEOUT_S = 10.0


class ChaosClient:
    """Sends requests. Their ids begin with `prefix`, by which they are found in the service's access log."""

    def __init__(self, client: httpx.AsyncClient, deadline_s: float, prefix: str = "") -> None:
        self._client = client
        self._deadline_s = deadline_s
        self.prefix = prefix or f"chaos-{uuid.uuid4().hex[:8]}"

    async def send(self, spec: RequestSpec, name: str, on_text: OnText) -> Recording:
        """Send one request and read its response. `name` completes the request id."""
        return await send_request(self._client, spec, f"{self.prefix}-{name}", self._deadline_s, on_text)

    async def send_all(self, specs: Iterable[RequestSpec], concurrency: int, name: str) -> dict[int, Recording]:
        """Send each request once; the recordings by the requests' numbers."""
        recordings: dict[int, Recording] = {}

        async def send(spec: RequestSpec) -> None:
            recordings[spec.number] = await self.send(spec, f"{name}-{spec.number}", ignore_progress)

        await each(specs, concurrency, send)
        return recordings

    async def is_healthy(self) -> bool:
        """Whether `/health` answers 200."""
        try:
            return (await self._client.get("/health", timeout=PROBE_TIMEOUT_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def model(self) -> str:
        """The first served model name. Raises `BadOptions`."""
        try:
            response = await self._client.get("/v1/models", timeout=PROBE_TIMEOUT_S)
            if response.status_code == 401:
                raise BadOptions("the endpoint requires an API key: give --key")
            return str(response.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise BadOptions(f"the endpoint does not list its models ({error}): is --url right?") from error


def ignore_progress(_characters: int) -> None:
    """An `OnText` that does nothing."""


@asynccontextmanager
async def open_client(
    options: ChaosOptions, prefix: str = "", tls: ssl.SSLContext | None = None
) -> AsyncIterator[ChaosClient]:
    """A client with its own connections. With `prefix`, it shares the request ids' prefix with another client."""
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.concurrency)
    # No read timeout: gaps between texts are what is measured. The deadline limits the whole request.
    timeout = httpx.Timeout(None, connect=PROBE_TIMEOUT_S)
    async with httpx.AsyncClient(
        base_url=options.url, headers=headers, limits=limits, timeout=timeout, trust_env=False, verify=tls or True
    ) as client:
        yield ChaosClient(client, options.deadline_s, prefix)


async def each(items: Iterable[T], concurrency: int, do: Callable[[T], Awaitable[None]]) -> None:
    """Await `do(item)` for every item, at most `concurrency` at a time."""
    iterator = iter(items)

    async def worker() -> None:
        for item in iterator:
            await do(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())


def failures(recordings: Iterable[Recording]) -> Sequence[Recording]:
    """The recordings of failed requests."""
    return [recording for recording in recordings if not recording.finished]
