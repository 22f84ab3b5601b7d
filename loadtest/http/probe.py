"""The server before the run: is it there, does it let us in, what does it serve? One line for each mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import msgspec

from loadtest.errors import TargetError
from loadtest.http.address import Address, head, parse_url, resolve
from loadtest.http.event_stream import BadFraming, payload_of
from loadtest.http.pool import ConnectFailed, Endpoint, Pool

ANSWER_WITHIN_S = 15.0


@dataclass(frozen=True)
class Reply:
    """A plain response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Served:
    """A model as `/v1/models` lists it."""

    model: str
    root: str = ""
    max_model_len: int = 0


class _Model(msgspec.Struct):
    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


async def get(pool: Pool, address: Address, path: str, headers: Mapping[str, str]) -> Reply:
    """One GET over the pool. Raises TargetError where there is no complete answer in time."""
    return await _ask(pool, address, head(address, "GET", path, headers, None), path)


async def post(pool: Pool, address: Address, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
    """One POST of JSON over the pool."""
    return await _ask(pool, address, head(address, "POST", path, headers, len(body)) + body, path)


async def _ask(pool: Pool, address: Address, request: bytes, path: str) -> Reply:
    what = f"{address.url}{path}"
    try:
        connection, _ = await pool.take()
    except ConnectFailed as failed:
        raise TargetError(f"cannot reach {what}: {failed}", _remedy(str(failed))) from failed
    exchange = connection.begin(request, perf_counter_ns())
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await exchange.done
    except TimeoutError as late:
        raise TargetError(
            f"no answer from {what} within {ANSWER_WITHIN_S:g} s", "Is the server still starting?"
        ) from late
    finally:
        if not exchange.end_ns:  # nobody waits for the rest any more
            connection.close()
        pool.give(connection)
    if exchange.failure:
        raise TargetError(f"{what}: {exchange.failure}", _remedy_broken(address))
    try:
        return Reply(exchange.status, exchange.headers, payload_of(exchange))
    except BadFraming as bad:
        raise TargetError(f"{what}: {bad}") from bad


def _remedy_broken(address: Address) -> str:
    if address.tls:
        return "Is this an HTTP server? Its own log may say more"
    return "Is this an HTTP server? If it speaks TLS, write https://"


def _remedy(failure: str, *, tls: bool = False) -> str:
    if tls and "within" in failure:
        return "Does the server speak TLS on this port? Try http://"
    if "certificate" in failure:
        return "Give the CA with --ca-file, or --insecure to skip the check"
    if "TLS" in failure:
        return "Does the server speak TLS on this port? Try http://"
    return "Is the server running, and is --url right?"


async def open_endpoint(url: str, *, verify: bool = True, ca_file: str | None = None) -> Endpoint:
    """Look the host up, find an address that accepts a connection, and stay with it for the whole run."""
    address = parse_url(url)
    failed = ""
    for ip in resolve(address):
        endpoint = Endpoint(address, ip, verify, ca_file)
        pool = Pool(endpoint, connect_timeout_s=5.0)
        try:
            await pool.open_ahead(1)
        except ConnectFailed as bad:
            failed = failed or str(bad)
        else:
            return endpoint
        finally:
            pool.close()
    raise TargetError(f"cannot reach {address.url}: {failed}", _remedy(failed, tls=address.tls))


async def find_model(endpoint: Endpoint, headers: Mapping[str, str], wanted: str | None) -> Served:
    """The model to ask for: the wanted one, or the first that the server lists."""
    pool = Pool(endpoint)
    try:
        reply = await get(pool, endpoint.address, "/v1/models", headers)
    finally:
        pool.close()
    refused(reply, endpoint.address)
    try:
        models = msgspec.json.decode(reply.body, type=_Models).data if reply.status == 200 else []
    except msgspec.DecodeError:
        models = []
    if not models:
        if wanted:
            return Served(wanted)
        raise TargetError(
            f"{endpoint.address.url}/v1/models lists no model (HTTP {reply.status})", "Name one with --model"
        )
    chosen = next((model for model in models if model.id == wanted), None) if wanted else models[0]
    if chosen is None:
        names = ", ".join(model.id for model in models)
        raise TargetError(f"the server does not list the model {wanted!r}", f"It serves: {names}")
    return Served(chosen.id, chosen.root or "", chosen.max_model_len or 0)


def refused(reply: Reply, address: Address) -> None:
    """Raise where the server does not let us in."""
    if reply.status in (401, 403):
        raise TargetError(
            f"{address.url} refuses the key (HTTP {reply.status})", "Give it with --api-key or in OPENAI_API_KEY"
        )
    if reply.status in (429, 503, 529):
        wait = reply.headers.get("retry-after")
        hint = f"It asks to come back in {wait} s" if wait else "Try again when it is ready"
        raise TargetError(f"{address.url} cannot serve now (HTTP {reply.status})", hint)
