"""Event streams to the client: never silent, with a true status at the start and true errors later.

* The head is held back until the first event, so that a request which fails before it gets a real status. No OpenAI
  stream gets a first chunk before the engine has its first token.
* A stream without an event for `keep_alive_s` gets a comment (OpenAI) or a `ping` event (Anthropic).
* An event that only says that a stream has begun (`response.created`) is sent with the next one: vLLM sends it before
  the engine has seen the request.
* An Anthropic stream gets its `message_start` soon after the request was submitted, with the true number of prompt
  tokens: clients show it, and give up on silence. vLLM sends its own with the first token; that one is then dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.types import Message, Send

from serve_app.ingress.error_format import ApiStyle, error_object, foreign_error
from serve_app.observability.phases import server_timing
from serve_app.protocol.errors import ServeError
from serve_app.router.request_context import RequestContext

KEEP_ALIVE = {ApiStyle.OPENAI: b": keep-alive\n\n", ApiStyle.ANTHROPIC: b'event: ping\ndata: {"type": "ping"}\n\n'}
MESSAGE_START = b"event: message_start"
RESPONSE_FAILED = b"event: response.failed"
ERROR_STARTS = (b'data: {"error"', b"event: error", RESPONSE_FAILED)
ONLY_BEGUN = (b"event: response.created", b"event: response.in_progress")
MESSAGE_START_AFTER_S = 0.5
"""An engine refuses a request at once; until then the status of the answer stays open."""

INSPECTED = (*ERROR_STARTS, MESSAGE_START)


class EventStream:
    """One `text/event-stream` response. `head` is the response start, which is sent with the first event.

    `send` gets the head and the end, `pass_on` may get what is between. `refuse` answers with an error in place of a
    stream that has not begun.
    """

    def __init__(
        self,
        head: Message,
        send: Send,
        pass_on: Send,
        refuse: Callable[[ServeError], Awaitable[None]],
        api: ApiStyle,
        context: RequestContext,
        keep_alive_s: float,
    ) -> None:
        self._head: Message | None = head
        self._send = send
        self._pass_on = pass_on
        self._refuse = refuse
        self._held = b""
        self._api = api
        self._context = context
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._last_sent_s = self._loop.time()
        self._at_boundary = True
        self._message_started = False
        self._over = False
        self.chunks = 0
        """How many ordinary chunks have been sent: neither the first one nor errors."""
        self.last_chunk = b""
        self.failed = False
        """Whether the stream carried an error event, or turned into an error response."""
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer = self._loop.call_later(keep_alive_s, self._tick)
        if api is ApiStyle.ANTHROPIC:
            self._spawn(self._start_message())

    async def body(self, message: Message) -> None:
        """Pass on one body message of the app. Each holds whole events, as vLLM sends them."""
        if self._over:
            return
        body = message.get("body", b"")
        if self._is_plain(message, body):
            # Every token passes here: no lock, no message of our own.
            self.chunks += 1
            self.last_chunk = body
            self._at_boundary = False  # nothing in between, however slowly the client reads
            await self._pass_on(message)
            self._sent(body)
            return
        if self._head is not None and body.startswith(ONLY_BEGUN):
            self._held += body
            return
        if body.startswith(ERROR_STARTS):
            self.failed = True
            if self._head is not None:
                await self._answer(self._error(body))
                return
            body = self._error_event(body)
        async with self._lock:
            if self._message_started and body.startswith(MESSAGE_START):
                return
            self._message_started = self._message_started or body.startswith(MESSAGE_START)
            await self._emit(body, more=message.get("more_body", False))
        if not message.get("more_body", False):
            self.close()

    async def fail(self) -> None:
        """End the stream with the request's error, for an app that has broken it off."""
        self.failed = True
        error = self._error(b"{}")
        if self._head is not None:
            await self._answer(error)
            return
        async with self._lock:
            await self._emit(self._error_event(b""), more=False)
        self.close()

    def close(self) -> None:
        """Stop the timer. Nothing is sent after this."""
        self._over = True
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    # ---- inside ------------------------------------------------------------------------------------------------------

    async def _emit(self, body: bytes, *, more: bool = True) -> None:
        if not more and self._context.wants_timing:
            body += b": server-timing " + server_timing(self._context, self._loop.time()).encode("ascii") + b"\n\n"
        head, self._head = self._head, None
        if head is not None:
            await self._send(head)
            body, self._held = self._held + body, b""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._sent(body)

    def _is_plain(self, message: Message, body: bytes) -> bool:
        """Whether it is an ordinary event, and no other task is sending."""
        return (
            self._head is None
            and len(body) > 0
            and message.get("more_body", False)
            and not body.startswith(INSPECTED)
            and not self._lock.locked()
        )

    def _sent(self, body: bytes) -> None:
        self._last_sent_s = self._loop.time()
        if body:
            self._at_boundary = body.endswith((b"\n\n", b"\r\n\r\n"))

    async def _answer(self, error: ServeError) -> None:
        """The first event is an error: answer with its status, as if there were no stream."""
        self._head = None
        self.close()
        await self._refuse(error)

    def _error(self, body: bytes) -> ServeError:
        """The request's error: the reported one, else what the event says."""
        if self._context.error is not None:
            return self._context.error
        payload = body[body.index(b"{") :].split(b"\n\n")[0]
        return foreign_error(_code(payload), payload)

    def _error_event(self, body: bytes) -> bytes:
        """The error as an event in the API's shape. vLLM's own event may report a failure of its stream converter."""
        if body.startswith(RESPONSE_FAILED):
            return body
        event = msgspec.json.encode(error_object(self._api, self._error(body or b"{}"), self._context.request_id))
        name = b"event: error\n" if self._api is ApiStyle.ANTHROPIC else b""
        return name + b"data: " + event + b"\n\n"

    async def _start_message(self) -> None:
        await self._context.submitted.wait()
        await asyncio.sleep(MESSAGE_START_AFTER_S)
        async with self._lock:
            # After a failure the error comes next, and the status must stay open for it.
            if not (self._message_started or self._over or self._context.error is not None):
                await self._emit_message_start()

    async def _emit_message_start(self) -> None:
        self._message_started = True
        message: dict[str, Any] = {
            "id": f"chatcmpl-{self._context.request_id}",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._context.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self._context.sequences[0].prompt_tokens, "output_tokens": 0},
        }
        event = msgspec.json.encode({"type": "message_start", "message": message})
        await self._emit(MESSAGE_START + b"\ndata: " + event + b"\n\n")

    def _tick(self) -> None:
        idle_s = self._loop.time() - self._last_sent_s
        left_s = self._keep_alive_s - idle_s
        if left_s <= 0 and self._at_boundary and not self._lock.locked():
            self._spawn(self._keep_alive())
            left_s = self._keep_alive_s
        self._timer = self._loop.call_later(max(left_s, 0.05), self._tick)

    async def _keep_alive(self) -> None:
        async with self._lock:
            if self._over or (self._head is not None and self._context.error is not None):
                return
            if self._api is ApiStyle.ANTHROPIC and not self._message_started and self._context.submitted.is_set():
                await self._emit_message_start()
            else:
                await self._emit(self._sign_of_life())

    def _sign_of_life(self) -> bytes:
        waits_for = next((text for one in self._context.sequences if (text := one.waits_for())), "")
        if self._api is ApiStyle.OPENAI and waits_for:
            return f": keep-alive, {waits_for}\n\n".encode()
        return KEEP_ALIVE[self._api]

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _code(payload: bytes) -> int:
    """The status in an error event of vLLM's."""
    try:
        error = msgspec.json.decode(payload).get("error", {})
    except (msgspec.DecodeError, AttributeError):
        return 500
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
