"""The middleware in front of vLLM's API app: authentication, routes, limits, and the shape of errors. Pure ASGI.

In order: request id; served routes (`ingress/routes.py`); the API key and its limits (`ingress/rate_limits/`); the body
(encoding, size, aliases, effort); then vLLM's app. On the way back: the request id, errors in the API's own shape with
a retry hint, streams that never go silent (`ingress/sse.py`), and one log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress import content_encoding, finish_reasons, routes, sessions
from serve_app.ingress.cors import Cors
from serve_app.ingress.error_format import SERVER_FAULT, ApiStyle, error_body, foreign_error, status_of
from serve_app.ingress.rate_limits.headers import limit_headers
from serve_app.ingress.rate_limits.limiter import RateLimiter
from serve_app.ingress.requests import json_body, preparation, service_tier
from serve_app.ingress.requests.edits import HEADER, Edits, header_value
from serve_app.ingress.sse import EventStream
from serve_app.observability.phases import server_timing
from serve_app.protocol.errors import Outcome, PoisonRequest, PromptTooLong, RateLimited, RequestRefused, ServeError
from serve_app.protocol.service_class import Share
from serve_app.protocol.trace_context import HEADERS as TRACE_HEADERS
from serve_app.protocol.trace_context import TraceContext
from serve_app.router.request_context import CURRENT, RequestContext

logger = logging.getLogger(__name__)

NOT_PASSED_ON = (b"x-request-id", b"content-length", b"x-data-parallel-rank", *TRACE_HEADERS)
"""Request headers that we set ourselves or drop. The third names a rank of vLLM's data parallelism, and routing is
ours; an engine gets trace headers with each attempt."""

REQUEST_ID = re.compile(r"[ -~]{1,256}")
"""A request id that a client may choose: it is logged, and it is part of the engine's id. Any printable text, because
Ray Serve returns what the client has sent, whatever we make of it."""

EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""The model has low, medium and high; the APIs have more. vLLM refuses any other value."""


ABOUT_THE_BODY = (b"content-type", b"content-length", b"transfer-encoding")
"""Response headers that are dropped when the body is replaced."""

DEBUG_HEADER = "x-step-debug"
"""With the value `timing`, the answer says where its time went: in a header, or in the last comment of a stream."""

DISCONNECT_GRACE_S = 0.25
"""How long vLLM's handlers may take to stop after a disconnect: a few turns of the event loop are enough."""


class Keys(Protocol):
    """The known API keys (`ingress/auth.py`)."""

    def name_of(self, presented: str) -> str | None:
        """The name of the key's owner; None for an unknown key."""

    def share_of(self, name: str) -> Share:
        """The class and weight of an owner's key."""


class AccessLog(Protocol):
    """Called once for every request, at its end (`ingress/metrics.py`)."""

    def request(self, context: RequestContext, route: str, status: int, outcome: Outcome, total_s: float) -> None:
        """One request has ended. `route` is a pattern of `routes.SERVED`, or "unserved"."""


class RequestTracing(AccessLog, Protocol):
    """Makes spans of requests (`observability/tracing.py`)."""

    def begin(self, headers: Mapping[str, str]) -> TraceContext | None:
        """A request with these headers has arrived. None: it is not sampled, and its end is not to be told."""


@dataclass(frozen=True)
class MiddlewareSettings:
    """The middleware's part of the configuration. An alias that ends in `*` matches any name with that start."""

    served_name: str
    aliases: tuple[str, ...]
    max_body_bytes: int
    keep_alive_s: float
    sets_request_id: bool = True
    """Whether the response's `x-request-id` is ours to set. Not behind Ray Serve, which sets the same one itself."""
    cors: Cors = field(default_factory=Cors)


class IngressMiddleware:
    """The outermost ASGI app; `app` is vLLM's."""

    def __init__(
        self,
        app: ASGIApp,
        settings: MiddlewareSettings,
        keys: Keys | None,
        log: AccessLog,
        limiter: RateLimiter | None = None,
        tracing: RequestTracing | None = None,
    ) -> None:
        self.app = app
        self.settings = settings
        self.keys = keys
        self.log = log
        self.limiter = limiter
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; only HTTP requests are processed here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        offered = headers.get("x-request-id", "")
        request_id = offered if REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        broken = headers.get("x-resume-request-id", "")
        received_s = asyncio.get_running_loop().time()
        context = RequestContext(
            request_id,
            received_s=received_s,
            body_read_s=None if scope["method"] == "POST" else received_s,
            received_unix_s=time.time(),
            wants_timing=headers.get(DEBUG_HEADER, "") == "timing",
            resume_request_id=broken if REQUEST_ID.fullmatch(broken) else None,
        )
        token = CURRENT.set(context)
        cycle = _RequestCycle(self, scope, receive, send, headers, context)
        try:
            await cycle.run()
        finally:
            CURRENT.reset(token)

    def resolve_model(self, name: str) -> str:
        """The served name for an alias; any other name as it is."""
        for alias in self.settings.aliases:
            if name == alias or (alias.endswith("*") and name.startswith(alias[:-1])):
                return self.settings.served_name
        return name

    def resolve_path(self, path: str) -> str:
        """The path with the served name where it names an alias."""
        prefix, found, model = path.partition(routes.MODELS + "/")
        return routes.MODELS + "/" + self.resolve_model(model) if found and not prefix else path


class _RequestCycle:
    """One request and its response."""

    def __init__(
        self,
        middleware: IngressMiddleware,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[str, str],
        context: RequestContext,
    ) -> None:
        self._middleware = middleware
        self._receive = receive
        self._raw_send = send
        self._headers = headers
        self._context = context
        context.method = scope["method"]
        path = middleware.resolve_path(routes.tidy_path(scope["path"]))
        self._method: str = scope["method"]
        # HEAD is a GET whose body is kept back.
        self._scope = {**scope, "path": path, "raw_path": path.encode(), "method": self._app_method()}
        self._route = routes.find(path, self._method)
        self._api = routes.api_of(self._route, path, headers)
        self._tracing = middleware.tracing
        self._status = 0
        self._disconnected = False
        self._complete = False
        self._held: Message | None = None
        self._held_body = bytearray()
        self._stream: EventStream | None = None

    def _app_method(self) -> str:
        return "GET" if self._method == "HEAD" else self._method

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        route = self._route
        # Whoever has no key, or asks for nothing that is served, does not decide what is sampled.
        self._begin_trace({})
        try:
            await self._handle(route)
        except (RequestRefused, RateLimited) as refused:
            await self._refuse(refused)
        except asyncio.CancelledError:
            self._disconnected = self._disconnected or not self._complete
            raise
        except Exception:  # the request's edge: what neither the middleware nor vLLM's app expected
            logger.exception("request_failed", extra={"id": self._context.request_id})
            await self._end_failed()
        finally:
            if self._stream is not None:
                self._stream.close()
            pattern = route.pattern.pattern if route is not None else "unserved"
            total_s = loop.time() - self._context.received_s
            ended = (self._context, pattern, self._status, self._outcome(), total_s)
            self._middleware.log.request(*ended)
            if self._tracing is not None and self._context.trace_context is not None:
                self._tracing.request(*ended)

    async def _handle(self, route: routes.Route | None) -> None:
        method, path = self._method, self._scope["path"]
        if route is None:
            raise RequestRefused(f"{method} {path[:200]} is not served here.", HTTPStatus.NOT_FOUND, code="unknown_url")
        if method == "OPTIONS":
            await self._answer_options(route)
        elif not route.allows(method):
            problem = RequestRefused(
                f"{method} is not possible on {path[:200]}; use {route.allow}.", HTTPStatus.METHOD_NOT_ALLOWED
            )
            await self._refuse(problem, [(b"allow", route.allow.encode())])
        elif await self._authenticate(route):
            self._begin_trace(self._headers)
            limiter = self._middleware.limiter if route.generates else None
            with limiter.admitted(self._context.key_name, self._context) if limiter else contextlib.nullcontext():
                await self._serve()

    def _begin_trace(self, headers: Mapping[str, str]) -> None:
        # Probes come every few seconds, and nobody looks for their traces.
        if self._tracing is not None and (self._route is None or self._route.needs_key):
            self._context.trace_context = self._tracing.begin(headers)
            if headers and self._context.trace_context is not None:
                self._raw_send = finish_reasons.noting(self._raw_send, self._api, self._context.finish_reasons)

    async def _answer_options(self, route: routes.Route) -> None:
        """The methods of a route. A browser asks, without its key, before it sends a request from another origin's
        page."""
        cors, origin = self._middleware.settings.cors, self._headers.get("origin", "")
        headers = [(b"allow", route.allow.encode())]
        if "access-control-request-method" in self._headers:
            if not cors.allows(origin):
                raise RequestRefused(
                    f"Pages of the origin `{origin[:100]}` may not call this service; see `ingress.allowed_origins`.",
                    HTTPStatus.FORBIDDEN,
                )
            headers += cors.preflight(self._headers.get("access-control-request-headers", ""))
        await self._send_raw({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT.value, "headers": headers})
        await self._send_raw({"type": "http.response.body", "body": b"", "more_body": False})

    async def _authenticate(self, route: routes.Route) -> bool:
        keys = self._middleware.keys
        if keys is None or not route.needs_key:
            return True
        presented = self._headers.get("x-api-key", "")
        scheme, _, bearer = self._headers.get("authorization", "").partition(" ")
        if not presented and scheme.lower() == "bearer":
            presented = bearer.strip()
        self._context.key_name = keys.name_of(presented) if presented else None
        if self._context.key_name is not None:
            self._context.share = keys.share_of(self._context.key_name)
            return True
        problem = "The API key is not known." if presented else "No API key was given."
        text = f"{problem} Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
        await self._refuse(RequestRefused(text, HTTPStatus.UNAUTHORIZED), [(b"www-authenticate", b"Bearer")])
        return False

    # ---- the request -------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        body = b""
        replaced = [*NOT_PASSED_ON]
        added = [(b"x-request-id", self._context.request_id.encode("latin-1"))]
        if self._method == "POST":
            read = await self._read_body()
            if read is None:
                return
            read = await self._plain_json(read)
            self._context.body_digest = hashlib.blake2b(read, digest_size=16).digest()
            try:
                body = self._rewrite(read)
            except RecursionError:
                raise RequestRefused("The request is nested too deeply.") from None
            replaced += [b"content-encoding", b"content-type"]
            added += [(b"content-length", str(len(body)).encode("ascii")), (b"content-type", b"application/json")]
        headers = [(name, value) for name, value in self._scope["headers"] if name not in replaced] + added
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        disconnected = asyncio.Event()

        async def receive() -> Message:
            if pending:
                return pending.pop()
            message = await _first(self._receive(), _disconnect_after(disconnected))
            if message["type"] == "http.disconnect" and not self._complete:
                self._disconnected = True
            return message

        app = asyncio.ensure_future(self._middleware.app({**self._scope, "headers": headers}, receive, self._send))
        try:
            await asyncio.shield(app)
        except asyncio.CancelledError:
            # Ray Serve cancels this task when the client disconnects. vLLM's handlers (`with_cancellation`) do not
            # cancel what they have started, which would run to its end; at a disconnect message they do. So they get
            # one.
            self._disconnected = not self._complete
            disconnected.set()
            try:
                await asyncio.wait([app], timeout=DISCONNECT_GRACE_S)
            finally:
                app.cancel()
            raise

    async def _end_failed(self) -> None:
        """Complete a response that the app has left incomplete."""
        self._context.fail(ServeError(SERVER_FAULT))
        if self._complete or self._context.error is None:
            return
        if self._stream is not None:
            await self._stream.fail()
        elif self._status == 0:
            await self._refuse(self._context.error)

    async def _read_body(self) -> bytes | None:
        limit = self._middleware.settings.max_body_bytes
        declared = self._headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise content_encoding.too_large(limit, int(declared[:20]))
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._disconnected = True
                return None
            body += message.get("body", b"")
            if len(body) > limit:
                raise content_encoding.too_large(limit)
            if not message.get("more_body", False):
                self._context.body_read_s = asyncio.get_running_loop().time()
                return bytes(body)

    async def _plain_json(self, read: bytes) -> bytes:
        """The body as plain JSON. Raises `RequestRefused` for what cannot be that."""
        content_type, encoding = self._headers.get("content-type", ""), self._headers.get("content-encoding", "")
        if not content_encoding.is_json(content_type, from_browser="origin" in self._headers):
            problem = f"Content-Type `{content_type[:60]}` is not supported; send JSON with `application/json`."
            raise RequestRefused(problem, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        if encoding:
            limit = self._middleware.settings.max_body_bytes
            read = await asyncio.to_thread(content_encoding.decode, read, encoding, limit)
        return content_encoding.as_utf8(read, content_type)

    def _rewrite(self, body: bytes) -> bytes:
        """Replace aliases by the served name and efforts by those of the model; repair or leave out what agents send
        and vLLM does not take (`ingress/requests/preparation.py`). Raises `RequestRefused`."""
        path = self._scope["path"]
        self._context.is_plain_text = path == routes.COMPLETIONS
        if path not in preparation.WITH_BODY:
            return body
        request, repaired = json_body.decode(body)
        self._context.session = sessions.find(self._headers, request)
        edits = Edits(changed=repaired)
        model = request.get("model")
        if isinstance(model, str):
            self._context.model = self._middleware.resolve_model(model)
            edits.changed |= self._context.model != model
            request["model"] = self._context.model
        preparation.prepare(path, request, edits)
        priority = self._headers.get(service_tier.PRIORITY_HEADER, "")
        allowed = self._context.share.service_class
        used, self._context.service_tier = service_tier.take(request, edits, allowed, priority)
        self._context.share = replace(self._context.share, service_class=used)
        self._context.ignored = edits.ignored
        for holder in (
            request,
            *(request.get(name) for name in ("reasoning", "output_config", "chat_template_kwargs")),
        ):
            edits.changed |= _clamp_effort(holder)
        return json_body.encode(request) if edits.changed else body

    # ---- the response ------------------------------------------------------------------------------------------------

    async def _refuse(self, error: ServeError, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        """Answer with an error, in the API's shape."""
        self._context.fail(error)
        if isinstance(error, PromptTooLong) and error.param is None and self._route is not None:
            error.param = self._route.prompt_field
        body = error_body(self._api, error, self._context.request_id)
        kept = [(name, value) for name, value in headers or () if name.lower() not in ABOUT_THE_BODY]
        kept += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
        if error.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            kept.append((b"accept-encoding", content_encoding.ENCODINGS.encode()))
        await self._send_raw({"type": "http.response.start", "status": status_of(self._api, error), "headers": kept})
        await self._send_raw({"type": "http.response.body", "body": body, "more_body": False})

    async def _send(self, message: Message) -> None:
        """Pass on what vLLM's app sends; streams and errors are handled."""
        if self._stream is not None:  # first: every token passes here
            await self._stream.body(message)
            return
        if message["type"] == "http.response.start":
            content_type = next((v for k, v in message["headers"] if k.lower() == b"content-type"), b"")
            if content_type.startswith(b"text/event-stream"):
                keep_alive_s = self._middleware.settings.keep_alive_s
                self._stream = self._context.stream = EventStream(
                    message, self._send_raw, self._raw_send, self._refuse, self._api, self._context, keep_alive_s
                )
                return
            if message["status"] >= 400:
                self._held = message
                return
        elif self._held is not None:
            await self._send_error(self._held, message)
            return
        await self._send_raw(message)

    async def _send_error(self, head: Message, message: Message) -> None:
        self._held_body += message.get("body", b"")
        if message.get("more_body", False):
            return
        self._held = None
        error = self._context.error or foreign_error(head["status"], bytes(self._held_body))
        await self._refuse(error, head["headers"])

    async def _send_raw(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._context.answer_begun = True
            headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
            message = {**message, "headers": headers + self._headers_of_ours()}
        elif not message.get("more_body", False):
            self._complete = True
        if self._method == "HEAD" and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._raw_send(message)

    def _headers_of_ours(self) -> list[tuple[bytes, bytes]]:
        request_id = self._context.request_id.encode("latin-1")
        headers = [(b"x-request-id", request_id)] if self._middleware.settings.sets_request_id else []
        if self._api is ApiStyle.ANTHROPIC:
            headers.append((b"request-id", request_id))
        headers += self._middleware.settings.cors.headers(self._headers.get("origin"))
        limiter = self._middleware.limiter
        if limiter is not None and self._route is not None and self._route.generates:
            standings = limiter.standings(self._context.key_name)
            headers += limit_headers(self._api, standings, datetime.now(UTC)) if standings else []
        if self._context.ignored:
            headers.append((HEADER, header_value(self._context.ignored)))
        if self._context.wants_timing and self._stream is None:
            timing = server_timing(self._context, asyncio.get_running_loop().time())
            headers.append((b"server-timing", timing.encode("ascii")))
        error = self._context.error
        if self._status >= HTTPStatus.BAD_REQUEST and error is not None:
            if error.retry_after_s is not None:
                headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode("ascii")))
            if isinstance(error, PoisonRequest):
                headers.append((b"x-should-retry", b"false"))  # OpenAI's and Anthropic's SDKs would try a 500 again
        return headers

    def _outcome(self) -> Outcome:
        if self._disconnected:
            return Outcome.CANCELLED
        failed = self._status >= HTTPStatus.BAD_REQUEST or (self._stream is not None and self._stream.failed)
        if failed and self._context.error is not None:
            return self._context.error.outcome
        if self._stream is not None and self._stream.failed:
            return Outcome.SERVER_ERROR
        return Outcome.from_status(self._status) if self._complete else Outcome.CANCELLED


def _clamp_effort(holder: object) -> bool:
    """Replace, in place, an effort that the model does not have. True when something changed."""
    if not isinstance(holder, dict):
        return False
    changed = False
    for name in ("reasoning_effort", "effort"):
        effort = holder.get(name)
        if isinstance(effort, str) and EFFORTS.get(effort, effort) != effort:
            holder[name] = EFFORTS[effort]
            changed = True
    return changed


async def _disconnect_after(disconnected: asyncio.Event) -> Message:
    await disconnected.wait()
    return {"type": "http.disconnect"}


async def _first(*awaitables: Awaitable[Message]) -> Message:
    """The result of whichever is done first; the others are cancelled."""
    futures = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for future in futures:
            future.cancel()
