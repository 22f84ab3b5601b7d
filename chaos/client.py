"""The clients of a run: one HTTP pool, a request id for everything, and the undisturbed run that comes first."""

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

PROBE_S = 10.0


class ChaosClient:
    """Sends requests. Their ids begin with `prefix`, by which the service's log knows them again."""

    def __init__(self, client: httpx.AsyncClient, deadline_s: float, prefix: str = "") -> None:
        self._client = client
        self._deadline_s = deadline_s
        self.prefix = prefix or f"chaos-{uuid.uuid4().hex[:8]}"

    async def send(self, spec: RequestSpec, name: str, on_text: OnText) -> Recording:
        """One request, followed to its end. `name` tells it from the others of this run."""
        return await send_request(self._client, spec, f"{self.prefix}-{name}", self._deadline_s, on_text)

    async def send_all(self, specs: Iterable[RequestSpec], concurrency: int, name: str) -> dict[int, Recording]:
        """Each of these requests once, without a fault: by the request's number."""
        found: dict[int, Recording] = {}

        async def one(spec: RequestSpec) -> None:
            found[spec.number] = await self.send(spec, f"{name}-{spec.number}", ignore_progress)

        await each(specs, concurrency, one)
        return found

    async def is_healthy(self) -> bool:
        """Whether the endpoint says that it can serve."""
        try:
            return (await self._client.get("/health", timeout=PROBE_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def model(self) -> str:
        """The first served name. Raises `BadOptions`."""
        try:
            answer = await self._client.get("/v1/models", timeout=PROBE_S)
            if answer.status_code == 401:
                raise BadOptions("the endpoint asks for a key: give --key")
            return str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise BadOptions(f"the endpoint does not list its models ({error}): is --url right?") from error


def ignore_progress(_characters: int) -> None:
    """For streams whose progress nobody waits for."""


@asynccontextmanager
async def open_client(
    options: ChaosOptions, prefix: str = "", tls: ssl.SSLContext | None = None
) -> AsyncIterator[ChaosClient]:
    """The clients, until the block is left. With a `prefix`: further ones of the same run."""
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.concurrency)
    # A stream may be silent as long as it likes: how long is what is measured. Its deadline is over all of it.
    timeout = httpx.Timeout(None, connect=PROBE_S)
    async with httpx.AsyncClient(
        base_url=options.url, headers=headers, limits=limits, timeout=timeout, trust_env=False, verify=tls or True
    ) as client:
        yield ChaosClient(client, options.deadline_s, prefix)


async def each(items: Iterable[T], concurrency: int, do: Callable[[T], Awaitable[None]]) -> None:
    """Do something for every item, so many at a time."""
    iterator = iter(items)

    async def worker() -> None:
        for item in iterator:
            await do(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())


def failures(recording: Iterable[Recording]) -> Sequence[Recording]:
    """Those that are no proper answers."""
    return [one for one in recording if not one.finished]
