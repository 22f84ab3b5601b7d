"""Checks before a run: whether the server is reachable, accepts the key and serves the model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import msgspec

from loadtest.errors import TargetError
from loadtest.http.address import Address, parse_url, request_head, resolve
from loadtest.http.event_stream import BadFraming, payload_of
from loadtest.http.pool import ConnectFailed, Endpoint, Pool

RESPONSE_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Reply:
    """A complete response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class ServedModel:
    """A model as `/v1/models` lists it."""

    model: str
    root: str = ""
    """Folder or repository of its weights; empty where the server does not say."""
    max_model_len: int = 0
    """Prompt and answer in tokens; 0 where the server does not say."""


class _Model(msgspec.Struct):
    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


async def get(
    pool: Pool, address: Address, path: str, headers: Mapping[str, str], *, timeout_s: float = RESPONSE_TIMEOUT_S
) -> Reply:
    """One GET over the pool. Raises TargetError where there is no complete response in time."""
    url = f"{address.url}{path}"
    try:
        connection, _ = await pool.acquire()
    except ConnectFailed as failed:
        raise TargetError(f"cannot reach {url}: {failed}", _remedy(str(failed))) from failed
    exchange = connection.send_request(request_head(address, "GET", path, headers), perf_counter_ns())
    try:
        async with asyncio.timeout(timeout_s):
            await exchange.done
    except TimeoutError as late:
        raise TargetError(f"no answer from {url} within {timeout_s:g} s", "Is the server still starting?") from late
    finally:
        if not exchange.end_ns:  # timed out: the rest of the response must not reach the next request
            connection.close()
        pool.release(connection)
    if exchange.failure:
        raise TargetError(f"{url}: {exchange.failure}", _remedy_no_http(address))
    try:
        return Reply(exchange.status, exchange.headers, payload_of(exchange))
    except BadFraming as bad:
        raise TargetError(f"{url}: {bad}") from bad


def _remedy_no_http(address: Address) -> str:
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
    """Resolve the host and return its first address that accepts a connection; a run uses only that one.

    Raises TargetError with the failure of the first address.
    """
    address = parse_url(url)
    failure = ""
    for ip in resolve(address):
        endpoint = Endpoint(address, ip, verify, ca_file)
        pool = Pool(endpoint, connect_timeout_s=5.0)
        try:
            await pool.preconnect(1)
        except ConnectFailed as bad:
            failure = failure or str(bad)
        else:
            return endpoint
        finally:
            pool.close()
    raise TargetError(f"cannot reach {address.url}: {failure}", _remedy(failure, tls=address.tls))


async def find_model(endpoint: Endpoint, headers: Mapping[str, str], requested: str | None) -> ServedModel:
    """The model to use: `requested`, or the first that the server lists. Raises TargetError."""
    pool = Pool(endpoint)
    try:
        reply = await get(pool, endpoint.address, "/v1/models", headers)
    finally:
        pool.close()
    raise_if_unusable(reply, endpoint.address)
    try:
        models = msgspec.json.decode(reply.body, type=_Models).data if reply.status == 200 else []
    except msgspec.DecodeError:
        models = []
    if not models:
        if requested:
            return ServedModel(requested)
        raise TargetError(
            f"{endpoint.address.url}/v1/models lists no model (HTTP {reply.status})", "Name one with --model"
        )
    chosen = next((model for model in models if model.id == requested), None) if requested else models[0]
    if chosen is None:
        names = ", ".join(model.id for model in models)
        raise TargetError(f"the server does not list the model {requested!r}", f"It serves: {names}")
    return ServedModel(chosen.id, chosen.root or "", chosen.max_model_len or 0)


def raise_if_unusable(reply: Reply, address: Address) -> None:
    """Raise TargetError where the server refuses the key or is not ready."""
    if reply.status in (401, 403):
        raise TargetError(
            f"{address.url} refuses the key (HTTP {reply.status})", "Give it with --api-key or in OPENAI_API_KEY"
        )
    if reply.status in (429, 503, 529):
        wait = reply.headers.get("retry-after")
        hint = f"It asks to come back in {wait} s" if wait else "Try again when it is ready"
        raise TargetError(f"{address.url} cannot serve now (HTTP {reply.status})", hint)
