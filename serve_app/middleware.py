"""The gate in front of vLLM's API app: who is asking, for what, and in which shape errors come back. Pure ASGI.

In order: request id; routes that are served at all; the key; the body (size, aliases, effort); then vLLM's app. On the
way back: the request id, errors in the API's own shape with a retry hint, streams that never go silent (`sse.py`), and
one log line. Nothing here waits for anything but the client and the app.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.context import CURRENT, RequestContext
from serve_app.errors import RequestRefused
from serve_app.ingress import json_body, request_preparation
from serve_app.ingress.edits import HEADER, Edits, header_value
from serve_app.outcome import Outcome
from serve_app.shapes import Api, error_body, reshape_error
from serve_app.sse import EventStream

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = re.compile(r"[ -~]{1,256}")
"""What a client may choose as request id: it is logged, and it is part of the engine's id. Any printable line, because
Ray Serve returns to the client what it has sent, whatever we make of it."""

EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""The model knows low, medium and high; the APIs know more. Anything else is left for vLLM to refuse."""


DISCONNECT_GRACE_S = 0.25
"""What vLLM's handlers get to stop by themselves when the client is gone: a few turns of the event loop are enough."""


@dataclass(frozen=True)
class Route:
    """A served path. `needs_key` is False for what load balancers and probes ask."""

    methods: frozenset[str]
    pattern: re.Pattern[str]
    api: Api
    needs_key: bool = True


def _route(methods: str, pattern: str, api: Api = Api.OPENAI, *, needs_key: bool = True) -> Route:
    return Route(frozenset(methods.split()), re.compile(pattern), api, needs_key)


SERVED = (
    _route("POST", "/v1/chat/completions"),
    _route("POST", "/v1/completions"),
    _route("POST", "/v1/responses"),
    _route("GET", "/v1/responses/[^/]+"),
    _route("POST", "/v1/responses/[^/]+/cancel"),
    _route("POST", "/v1/messages", Api.ANTHROPIC),
    _route("POST", "/v1/messages/count_tokens", Api.ANTHROPIC),
    _route("GET", "/v1/models"),
    _route("GET", "/v1/models/.+"),
    _route("POST", "/tokenize"),
    _route("POST", "/detokenize"),
    _route("GET", "/health", needs_key=False),
    _route("GET", "/version", needs_key=False),
    _route("GET HEAD", "/", needs_key=False),
)
"""Everything else is 404: vLLM's app has administration routes that nobody may reach from outside, some without a
key."""


class Keys(Protocol):
    """The keys that may ask (`serve_app/keys.py`)."""

    def name_of(self, presented: str) -> str | None:
        """Whose key it is; None for an unknown one."""


class AccessLog(Protocol):
    """Told of every request once, when it is over (`serve_app/metrics.py`)."""

    def request(self, context: RequestContext, route: str, status: int, outcome: Outcome, total_s: float) -> None:
        """One request has ended. `route` is a pattern of `SERVED`, or "unserved"."""


@dataclass(frozen=True)
class GateSettings:
    """What the gate is told by the configuration. An alias that ends in `*` matches any name with that start."""

    served_name: str
    aliases: tuple[str, ...]
    max_body_bytes: int
    keep_alive_s: float
    sets_request_id: bool = True
    """Whether the response's `x-request-id` is ours to set. Not behind Ray Serve, which sets the same one itself."""


class Gate:
    """The ASGI app that the world talks to; `app` is vLLM's."""

    def __init__(self, app: App, settings: GateSettings, keys: Keys | None, log: AccessLog) -> None:
        self.app = app
        self.settings = settings
        self.keys = keys
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event; only HTTP is gated."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        offered = headers.get("x-request-id", "")
        request_id = offered if REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        broken = headers.get("x-take-up", "")
        context = RequestContext(
            request_id,
            session_id=headers.get("x-session-id"),
            take_up=broken if REQUEST_ID.fullmatch(broken) else None,
        )
        token = CURRENT.set(context)
        exchange = _Exchange(self, scope, receive, send, headers, context)
        try:
            await exchange.run()
        finally:
            CURRENT.reset(token)

    def resolve_model(self, name: str) -> str:
        """The served name for an alias; any other name as it is."""
        for alias in self.settings.aliases:
            if name == alias or (alias.endswith("*") and name.startswith(alias[:-1])):
                return self.settings.served_name
        return name


class _Exchange:
    """One request and its response."""

    def __init__(
        self,
        gate: Gate,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[str, str],
        context: RequestContext,
    ) -> None:
        self._gate = gate
        self._scope = scope
        self._receive = receive
        self._raw_send = send
        self._headers = headers
        self._context = context
        self._api = Api.OPENAI
        self._status = 0
        self._client_left = False
        self._complete = False
        self._held: Message | None = None
        self._held_body = bytearray()
        self._stream: EventStream | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        route = self._match()
        try:
            if route is None:
                await self._refuse(404, f"{self._scope['method']} {self._scope['path']} is not served here.")
            elif await self._may_ask(route):
                await self._serve()
        except asyncio.CancelledError:
            self._client_left = self._client_left or not self._complete
            raise
        finally:
            if self._stream is not None:
                self._stream.close()
            pattern = route.pattern.pattern if route is not None else "unserved"
            self._gate.log.request(self._context, pattern, self._status, self._outcome(), loop.time() - started_s)

    def _match(self) -> Route | None:
        path = self._scope["path"]
        self._api = Api.ANTHROPIC if path.startswith("/v1/messages") else Api.OPENAI
        matching = [route for route in SERVED if route.pattern.fullmatch(path)]
        # A served path with another method goes through: the app says 405 and what is allowed.
        return next((route for route in matching if self._scope["method"] in route.methods), None) or next(
            iter(matching), None
        )

    async def _may_ask(self, route: Route) -> bool:
        keys = self._gate.keys
        # With OPTIONS a browser asks, without its key, whether it may ask: vLLM answers that, and does nothing.
        if keys is None or not route.needs_key or self._scope["method"] == "OPTIONS":
            return True
        presented = self._headers.get("x-api-key", "")
        scheme, _, bearer = self._headers.get("authorization", "").partition(" ")
        if not presented and scheme.lower() == "bearer":
            presented = bearer.strip()
        self._context.key_name = keys.name_of(presented) if presented else None
        if self._context.key_name is not None:
            return True
        problem = "The API key is not known." if presented else "No API key was given."
        await self._refuse(401, f"{problem} Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.")
        return False

    # ---- the request -------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        body = b""
        if self._scope["method"] == "POST":
            read = await self._read_body()
            rewritten = None if read is None else await self._rewrite_or_refuse(read)
            if rewritten is None:
                return
            body = rewritten
        replaced = (b"x-request-id", b"content-length")
        headers = [(name, value) for name, value in self._scope["headers"] if name not in replaced]
        headers.append((b"x-request-id", self._context.request_id.encode("latin-1")))
        if self._scope["method"] == "POST":
            headers.append((b"content-length", str(len(body)).encode("ascii")))
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        left = asyncio.Event()

        async def receive() -> Message:
            if pending:
                return pending.pop()
            message = await _first(self._receive(), _disconnect_after(left))
            if message["type"] == "http.disconnect" and not self._complete:
                self._client_left = True
            return message

        app = asyncio.ensure_future(self._gate.app({**self._scope, "headers": headers}, receive, self._send))
        try:
            await asyncio.shield(app)
        except asyncio.CancelledError:
            # Ray Serve cancels us when the client leaves. vLLM's handlers (`with_cancellation`) do not pass that on to
            # what they have started, which would run to its end; at a disconnect they stop it. So that is what they
            # get.
            self._client_left = not self._complete
            left.set()
            try:
                await asyncio.wait([app], timeout=DISCONNECT_GRACE_S)
            finally:
                app.cancel()
            raise

    async def _read_body(self) -> bytes | None:
        limit = self._gate.settings.max_body_bytes
        declared = self._headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await self._refuse(413, f"The request body has {declared} bytes; the limit is {limit}.")
            return None
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._client_left = True
                return None
            body += message.get("body", b"")
            if len(body) > limit:
                await self._refuse(413, f"The request body is larger than the limit of {limit} bytes.")
                return None
            if not message.get("more_body", False):
                return bytes(body)

    async def _rewrite_or_refuse(self, body: bytes) -> bytes | None:
        self._context.body_digest = hashlib.blake2b(body, digest_size=16).digest()
        try:
            return self._rewrite(body)
        except RequestRefused as error:
            self._context.refused = error
            await self._refuse(error.status, error.message, error.param)
            return None

    def _rewrite(self, body: bytes) -> bytes:
        """Aliases become the served name, efforts those the model knows; what agents send and vLLM does not take is
        mended or left out (`ingress/request_preparation.py`). Raises `RequestRefused`."""
        path = self._scope["path"]
        if path not in request_preparation.WITH_BODY:
            return body
        request, repaired = json_body.decode(body)
        edits = Edits(changed=repaired)
        model = request.get("model")
        if isinstance(model, str):
            self._context.model = self._gate.resolve_model(model)
            edits.changed |= self._context.model != model
            request["model"] = self._context.model
        request_preparation.prepare(path, request, edits)
        self._context.ignored = edits.ignored
        for holder in (
            request,
            *(request.get(name) for name in ("reasoning", "output_config", "chat_template_kwargs")),
        ):
            edits.changed |= _clamp_effort(holder)
        return json_body.encode(request) if edits.changed else body

    # ---- the response ------------------------------------------------------------------------------------------------

    async def _refuse(self, status: int, message: str, param: str | None = None) -> None:
        body = error_body(self._api, status, message, self._context.request_id, param)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self._send_raw({"type": "http.response.start", "status": status, "headers": headers})
        await self._send_raw({"type": "http.response.body", "body": body, "more_body": False})

    async def _send(self, message: Message) -> None:
        """What vLLM's app sends: streams and errors are looked after, anything else passes."""
        if self._stream is not None:  # first: each token comes by here
            await self._stream.body(message)
            return
        if message["type"] == "http.response.start":
            content_type = next((v for k, v in message["headers"] if k.lower() == b"content-type"), b"")
            if content_type.startswith(b"text/event-stream"):
                keep_alive_s = self._gate.settings.keep_alive_s
                self._stream = EventStream(
                    message, self._send_raw, self._raw_send, self._api, self._context, keep_alive_s
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
        body = reshape_error(self._api, head["status"], bytes(self._held_body), self._context.request_id)
        dropped = (b"content-length", b"content-type")
        headers = [(name, value) for name, value in head["headers"] if name.lower() not in dropped]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
        if self._scope["method"] == "HEAD":
            body = b""
        await self._send_raw({**head, "headers": headers})
        await self._send_raw({"type": "http.response.body", "body": body, "more_body": False})

    async def _send_raw(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
            if self._gate.settings.sets_request_id:
                headers.append((b"x-request-id", self._context.request_id.encode("latin-1")))
            error = self._context.error
            if message["status"] in (429, 503) and error is not None and error.retry_after_s is not None:
                headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode("ascii")))
            if self._context.ignored:
                headers.append((HEADER, header_value(self._context.ignored)))
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self._complete = True
        await self._raw_send(message)

    def _outcome(self) -> Outcome:
        if self._client_left:
            return Outcome.CLIENT_LEFT
        if self._context.error is not None:
            return self._context.error.outcome
        if self._stream is not None and self._stream.failed:
            return Outcome.SERVER_ERROR
        return Outcome.from_status(self._status) if self._complete else Outcome.CLIENT_LEFT


def _clamp_effort(holder: object) -> bool:
    """Replace an effort the model does not know, in place. True when something changed."""
    if not isinstance(holder, dict):
        return False
    changed = False
    for name in ("reasoning_effort", "effort"):
        effort = holder.get(name)
        if isinstance(effort, str) and EFFORTS.get(effort, effort) != effort:
            holder[name] = EFFORTS[effort]
            changed = True
    return changed


async def _disconnect_after(left: asyncio.Event) -> Message:
    await left.wait()
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
