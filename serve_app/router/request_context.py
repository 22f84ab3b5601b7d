"""A request at the ingress: `RequestContext` for one HTTP request, `SubmittedRequest` for each sequence of it.

The context is made by the middleware and filled in on the way. It travels as a context variable because vLLM's
handlers, between the middleware and the dispatcher, have no place for it. The variable holds a reference: what the
dispatcher writes into a `RequestTrace`, the middleware reads for headers and the log line.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from serve_app.protocol.errors import ServeError
from serve_app.protocol.images import ImageEncoder
from serve_app.protocol.messages import EngineTiming, RequestSpec, TokenDelta
from serve_app.protocol.service_class import DEFAULT_SHARE, Share
from serve_app.protocol.trace_context import TraceContext
from serve_app.router.attempts import End
from serve_app.router.routing import Decision


class WaitedFor(StrEnum):
    """What a sequence waits for before an attempt is sent."""

    NOTHING = "nothing"
    REPLICA = "a replica"
    """None was up."""
    ROOM = "room"
    """All were full."""
    MIGRATIONS = "migrations"
    """Sequences of a lost replica come first, and a few at a time (`migration_throttle.py`)."""


@dataclass
class AttemptTrace:
    """What happened to one attempt. Times are `loop.time()` stamps in seconds, if their names do not say otherwise."""

    replica_id: str
    dispatched_s: float
    routing: Decision
    """Why it went there."""
    waited_for: WaitedFor = WaitedFor.NOTHING
    unfinished: int = 0
    """How many requests ran or waited at the replica when it was sent there, and how many can run at a time."""
    slots: int = 0
    kv_usage_ratio: float = 0.0
    """How full the replica's cache was then."""
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None
    end: str = ""
    """How it ended (`attempts.End`)."""
    steps: int = 0
    """Steps of the engine that gave it tokens; and how many tokens they gave."""
    tokens: int = 0
    replica_queue_s: float = 0.0
    """Durations from the replica (`messages.EngineTiming`)."""
    engine_queue_s: float = 0.0
    prefill_s: float = 0.0
    neighbour_prefill_s: float = 0.0
    preempted_s: float = 0.0
    preemptions: int = 0
    first_compile_s: float = 0.0
    """How long a kernel was compiled before its first token; `compile_s`: after it. The same of waits for a CPU."""
    compile_s: float = 0.0
    first_cpu_wait_s: float = 0.0
    cpu_wait_s: float = 0.0
    span_id: int = 0
    """Of its span, where the request is sampled."""
    pool: str = ""
    """The part of the fleet that its replica belongs to."""
    on_canary: bool = False
    """Whether that part is on trial."""

    def take(self, delta: TokenDelta, now_s: float) -> None:
        """Note new tokens, and what their replica says of its time."""
        if delta.timing is not None:
            self._take_timing(delta.timing, first=self.first_token_s is None)
        if delta.token_ids:
            if self.first_token_s is None:
                self.first_token_s = now_s
            self.last_token_s = now_s
            self.steps += 1
            self.tokens += len(delta.token_ids)

    def _take_timing(self, timing: EngineTiming, *, first: bool) -> None:
        self.replica_queue_s += timing.replica_queue_s
        self.engine_queue_s += timing.engine_queue_s
        self.prefill_s += timing.prefill_s
        self.neighbour_prefill_s += timing.neighbour_prefill_s
        self.preempted_s += timing.preempted_s
        self.preemptions += timing.preemptions
        if first:
            self.first_compile_s += timing.compile_s
            self.first_cpu_wait_s += timing.cpu_wait_s
        else:
            self.compile_s += timing.compile_s
            self.cpu_wait_s += timing.cpu_wait_s


class Migration(msgspec.Struct, frozen=True):
    """A request moved to another replica. `cause` is how its attempt on the old one ended (`attempts.End`)."""

    at_unix_s: float
    request_id: str
    key: str
    from_replica: str
    to_replica: str
    cause: str


@dataclass
class RequestTrace:
    """What happened to one sequence, for its log line. Times are `loop.time()` stamps in seconds."""

    submitted_s: float = 0.0
    first_token_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    resumed_tokens: int = 0
    """Tokens of the output that come from a broken stream."""
    attempts: list[AttemptTrace] = field(default_factory=list)
    """Those that a replica took, in order."""
    inexact: tuple[str, ...] = ()
    """What a migration of this request cannot carry exactly (`docs/life-of-a-request.md`)."""
    waits_for: Callable[[], str] = lambda: ""
    """What it waits for now, in words for its client; empty for what takes no time worth saying."""
    error: ServeError | None = None
    trace_context: TraceContext | None = None
    """Its request's."""
    arm: str = ""
    """Its arm while a canary is tried (`canary_arm.Arm`)."""

    @property
    def replicas(self) -> list[str]:
        """Where its attempts went."""
        return [attempt.replica_id for attempt in self.attempts]

    @property
    def migrations(self) -> int:
        """How often another attempt took over from a lost one."""
        return max(len(self.attempts) - 1 - self.preemptions, 0)

    @property
    def preemptions(self) -> int:
        """How often it made room for a request of a higher class."""
        return sum(attempt.end == End.PREEMPTED.value for attempt in self.attempts)

    @property
    def routing(self) -> Decision | None:
        """Why the last attempt went where it did."""
        return self.attempts[-1].routing if self.attempts else None


@dataclass(frozen=True)
class SubmittedRequest:
    """One sequence that the ingress hands to the dispatcher. `spec` goes to the engine; the rest stays here."""

    spec: RequestSpec
    trace: RequestTrace
    pages: Sequence[int] = ()
    """The hashes of the pages of its prompt (`protocol/pages.py`), by which caches are known."""
    images: Mapping[str, ImageEncoder] = field(default_factory=dict)
    """The images of `spec.images`: they are sent where they are not yet."""
    resumes_key: str = ""
    """The resume key of the broken stream that it continues, if it does."""
    http_request_id: str = ""
    """The `x-request-id` of the HTTP request that it belongs to."""
    answer_begun: Callable[[], bool] = lambda: False
    """Whether the head of its HTTP response has been sent: then it is too late to refuse it."""

    @property
    def who(self) -> str:
        """What a canary's share is of: its session, else its client, else the HTTP request alone."""
        return self.spec.session or self.spec.client or self.http_request_id or self.spec.request_id

    @property
    def flow(self) -> str:
        """Client and session: whom it belongs to where requests wait."""
        return f"{self.spec.client}\0{self.spec.session}"


class ChunkStream(Protocol):
    """The stream of events to the client (`ingress/sse.py`)."""

    chunks: int
    """How many ordinary chunks have been sent: neither the first one nor errors."""
    last_chunk: bytes

    async def body(self, message: Any) -> None:
        """Send the body of an ASGI message."""


@dataclass(frozen=True)
class Session:
    """The conversation, or the agent's run, that a request belongs to, as its client names it. `source` is the header
    or field with the name (`ingress/sessions.py`)."""

    name: str
    source: str

    def id_for(self, client: str) -> str:
        """The session's id. Those of two clients differ: a name is whatever a client sends, and no claim to another's
        session."""
        named = f"{client}\0{self.name}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(named, digest_size=16).hexdigest()


@dataclass(eq=False)
class RequestContext:
    """One HTTP request. `sequences` has an entry for each (`n`, or several prompts)."""

    request_id: str
    received_s: float = 0.0
    """When it arrived, as a stamp of `loop.time()`."""
    received_unix_s: float = 0.0
    """The same, in seconds since 1970."""
    body_read_s: float | None = None
    """When all of it had been read."""
    wants_timing: bool = False
    """Whether its answer ends with where its time went (`x-step-debug: timing`)."""
    method: str = ""
    trace_context: TraceContext | None = None
    """Where it belongs in its trace; None: it is not sampled."""
    finish_reasons: list[str] = field(default_factory=list)
    """Why its answers ended, as the client is told; noted of a sampled request only."""
    session: Session | None = None
    resume_request_id: str | None = None
    """The id of the request with the broken stream that this one continues."""
    body_digest: bytes = b""
    key_name: str | None = None
    share: Share = DEFAULT_SHARE
    """That of its key; of a request that asks for a lower class, with that class."""
    service_tier: str | None = None
    """The tier that the answer names, where the request asked for one."""
    model: str | None = None
    ignored: list[str] = field(default_factory=list)
    """Parts of the request that were left out, by field (`ingress/requests/edits.py`)."""
    sequences: list[RequestTrace] = field(default_factory=list)
    grammar_source: str = "structured_outputs"
    """The field of the body that holds its grammar, if it has one."""
    answer_format: object = None
    """The format of its answer, where tools may be called instead (`ingress/grammars/tools_or_answer.py`)."""
    image_pixels: int = 0
    """Pixels of its images that have been read so far."""
    refused: ServeError | None = None
    """Why the request failed outside the dispatcher, if it did."""
    answer_begun: bool = False
    """Whether the head of the response has been sent: an error can then be an event only."""
    stream: ChunkStream | None = None
    """The answer, if it is streamed and its head is known."""
    repeated_chunks: int = 0
    """How many of its chunks were made by repetition (`ingress/repeated_chunks.py`)."""
    is_plain_text: bool = False
    """Whether the answer is not parsed (`/v1/completions`)."""
    submitted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first sequence has been submitted: it is rendered, valid and admitted, and its prompt tokens are
    known."""

    def resume_keys(self, prompt: msgspec.Raw) -> tuple[str, str]:
        """The key under which the next sequence keeps its partial output, and the key of the one that it continues.

        A key is a digest of all that must be the same: client, body, request id, prompt, and the sequence's number (of
        two with the same prompt, the first continues the first). Empty: there is none.
        """
        if not self.body_digest:
            return "", ""
        return (
            self._resume_key(self.request_id, prompt),
            self._resume_key(self.resume_request_id, prompt) if self.resume_request_id else "",
        )

    def _resume_key(self, request_id: str, prompt: msgspec.Raw) -> str:
        digest = hashlib.blake2b(self.body_digest, digest_size=16)
        digest.update(f"{self.client}\0{request_id}\0{len(self.sequences)}\0".encode())
        digest.update(prompt)
        return digest.hexdigest()

    @property
    def client(self) -> str:
        """The name of its client's API key; empty where there are no keys."""
        return self.key_name or ""

    @property
    def session_id(self) -> str | None:
        """Its session among those of all clients; None where the client names none."""
        return self.session.id_for(self.client) if self.session is not None else None

    def fail(self, error: ServeError) -> None:
        """Keep why the request failed. The first reason stays: later ones are often its consequences."""
        if self.error is None:
            self.refused = error

    @property
    def error(self) -> ServeError | None:
        """The error of the request: of itself, else of its first failed sequence."""
        return self.refused or next((one.error for one in self.sequences if one.error is not None), None)


CURRENT: ContextVar[RequestContext | None] = ContextVar("serve_app_request", default=None)
"""The request that the running task serves; None outside one (tests, warm-up)."""
