"""The messages between an ingress replica and an engine replica.

Attempts go one way, one message each (`AttemptRequest`). Tokens come back in `Frame`s: one per engine step and ingress,
with the new tokens of all its attempts and the replica's load. Both are msgpack. Nothing here imports vLLM: what only
vLLM reads travels as bytes, which `engine/vllm_io.py` and `ingress/engine_client.py` read and write with vLLM's own
encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

WIRE_VERSION = 6
"""Raised when a message changes: its fields are positions. During a rolling upgrade an old ingress may meet a new
replica. Messages of another version are not read beyond the version; the ingress then uses a replica of its own."""


class RequestSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an engine must know of one sequence, the same in every attempt to run it.

    `prompt` is its token ids (`encode_tokens`). They are encoded once, and by a replica not decoded: they go into
    vLLM's message to its engine as they are. An agent has 140,000 of them.

    `max_tokens` and `min_tokens` count from the first token of the first attempt. `payload` is vLLM's request (without
    the token ids and without its images), in the buffers of vLLM's encoder. `resume_key` names the partial output of a
    broken stream (`engine/partial_outputs.py`); empty: it is not kept. `images` are vLLM's hashes of its images, which
    travel with the attempt (`AttemptRequest.images`). `client` (the name of its API key) and `session`
    (`Session.id_for`) say whom it belongs to where requests wait (`engine/fair_queue.py`), `rank` and `weight` in which
    class and with which share (`protocol/service_class.py`). Not `preemptible`: another attempt would not be exact.
    """

    request_id: str
    prompt: msgspec.Raw
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: list[int]
    priority: int
    payload: list[bytes]
    resume_key: str = ""
    images: list[str] = []
    client: str = ""
    session: str = ""
    rank: int = 0
    weight: float = 1.0
    preemptible: bool = True

    @property
    def prompt_token_ids(self) -> list[int]:
        """The token ids of the prompt, decoded: 4 ms for 140,000."""
        return _TOKENS_DECODER.decode(self.prompt)

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return count_tokens(self.prompt)


class AttemptRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt to finish one request on one replica.

    `emitted_token_ids` are the tokens from earlier attempts: the engine continues as if it had produced them itself.
    `admitted`: a replica has taken the request before, so no replica refuses it for lack of room. `images` are those of
    `spec.images` that the replica may not have, by their hash: processed, in the buffers of vLLM's encoder.
    `prefill_tokens` of its prompt and emitted tokens are not in the replica's prefix cache, as far as its ingress
    knows. `trace_headers` (`TraceContext.headers`) make the engine's span a child of the attempt's; empty: the request
    is not sampled. `preempted`: an attempt made room for another request, and none has had a token since. This one
    waits in the order of its class. (`spec.preemptible` says that it is not preempted again.)
    """

    wire_version: int
    attempt_id: str
    ingress_id: str
    spec: RequestSpec
    emitted_token_ids: list[int]
    admitted: bool = False
    images: dict[str, list[bytearray]] = {}
    prefill_tokens: int = 0
    trace_headers: dict[str, str] = {}
    preempted: bool = False


class EngineTiming(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Where the time of an attempt went at its replica, in seconds.

    With its first delta: its wait before the engine got it, in the engine's own queue, and from its first scheduling to
    its first token. With later ones, what has come since the last that said so: how much longer steps took because they
    computed prompts of others, and time lost to preemptions for want of KV cache. With both: how long a kernel was
    compiled, and how long the replica's processes waited for a CPU. That is in no other part.
    """

    replica_queue_s: float = 0.0
    engine_queue_s: float = 0.0
    prefill_s: float = 0.0
    neighbour_prefill_s: float = 0.0
    preempted_s: float = 0.0
    preemptions: int = 0
    compile_s: float = 0.0
    cpu_wait_s: float = 0.0


class TokenDelta(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one engine step added to one attempt.

    `position` is the number of tokens that the request had before this delta, earlier attempts included: a gap or an
    overlap shows at once. `finish_reason` is vLLM's `FinishReason` as an int, None while the attempt runs.
    `cached_tokens` and `cache_creation_tokens` come with the first delta, `timing` with it and where there is something
    to say. `extra` is vLLM's whole `EngineCoreOutput` in its own encoding, sent only when it holds more than tokens
    (log probabilities, prompt log probabilities)."""

    attempt_id: str
    position: int
    token_ids: list[int]
    finish_reason: int | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None
    cache_creation_tokens: int | None = None
    extra: list[bytes] | None = None
    timing: EngineTiming | None = None


class ReplicaLoad(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The load of a replica, sent with every frame. `unfinished` counts attempts that run or wait there, of all
    ingresses, and `queued` those that are not in the engine yet; `recent_unfinished` is its mean over the last minute.

    A `draining` replica takes no new work: it is about to stop, or its engine is dead. `queued_prefill_tokens` of its
    attempts have yet to be computed, and `newcomer_prefill_tokens` of them before those of a client or session that has
    nothing there (`engine/fair_queue.py`); it computes `prefill_tokens_per_s` (None: not measured yet).
    """

    unfinished: int
    max_num_seqs: int
    kv_usage_ratio: float
    draining: bool
    queued_prefill_tokens: int = 0
    prefill_tokens_per_s: float | None = None
    recent_unfinished: float = 0.0
    queued: int = 0
    newcomer_prefill_tokens: int = 0

    @property
    def utilization(self) -> float:
        """Share of the batch slots taken, above 1 when requests wait; a nearly full cache counts as full."""
        slots = self.unfinished / max(self.max_num_seqs, 1)
        return max(slots, self.kv_usage_ratio) if self.kv_usage_ratio > 0.9 else slots


class DataChannelAddress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a replica accepts data channels (`protocol/data_channel.py`), and the secret that opens one."""

    host: str
    port: int
    secret: bytes


class ReplicaCapacity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many attempts a replica takes, and how fast it finishes them. It changes slowly, so no frame carries it.

    `max_unfinished` attempts may run and wait there; None: the ingress assumes its own configuration. One runs for
    `service_s` on average (None: not measured yet). `ingresses` are connected. The engine took `start_s` to start.
    It keeps `image_bytes` of the images that were sent to it (`protocol/images.py`). Its KV cache holds
    `kv_cache_tokens`. `reports_cache`: its frames say what its prefix cache holds (`Frame.cache`). `start_phases` are
    the seconds of each phase of its start, in their order.
    """

    max_unfinished: int | None = None
    service_s: float | None = None
    ingresses: int = 1
    start_s: float | None = None
    image_bytes: int = 0
    kv_cache_tokens: int = 0
    reports_cache: bool = False
    start_phases: dict[str, float] = {}


class ReplicaActivity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """For people: its `state` (`idle`, `working`, `busy`, `slow`, `stopping`, `dead`) and in words what is `under_way`.
    Lately a step gave a request `tokens_per_step`, and `acceptance_ratio` of the drafted tokens were accepted."""

    state: str = ""
    under_way: str = ""
    tokens_per_step: float | None = None
    acceptance_ratio: float | None = None


class ReplicaLabel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which part of the fleet a replica belongs to: its `pool`; empty where there is one part only. `is_canary`: its
    part is on trial. `weights` names what its answers come from: begun by one replica, an answer goes on exactly at
    another only where it is the same. Empty: unknown, as from an older version of this application."""

    pool: str = ""
    is_canary: bool = False
    weights: str = ""


NO_LABEL = ReplicaLabel()


class ReplicaInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A replica's answer to a listing. Without `data_channel`, attempts and frames go by Serve's calls.

    An ingress sends nothing to a replica of another `wire_version` or vLLM (`router/routing.py`). `quarantine` is what
    ingresses have told this replica: the names of requests and clients that crashed a replica, and for how many more
    seconds they are refused (`protocol/poison.py`). It runs on
    Ray's nodes `node_ids`.
    """

    wire_version: int
    replica_id: str
    load: ReplicaLoad
    data_channel: DataChannelAddress | None = None
    capacity: ReplicaCapacity = ReplicaCapacity()
    vllm_version: str = ""
    quarantine: dict[str, float] = {}
    activity: ReplicaActivity = ReplicaActivity()
    node_ids: list[str] = []
    label: ReplicaLabel = NO_LABEL


class CacheChanges(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What a prefix cache has stored and removed, by the hashes of pages of tokens (`protocol/pages.py`).

    `reset`: whatever was known of the cache is void; it holds what is in `stored`. A page in both `removed` and
    `stored` was removed first."""

    stored: list[int]
    removed: list[int] = []
    reset: bool = False


class Frame(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """One message of the stream from a replica to an ingress. `frame_number` rises by one with each of them.

    `cache` says how its prefix cache has changed since the last frame (None: not at all). The first frame of a
    connection has `reset` set, and everything that the cache holds; none has `cache` where the replica does not report
    it (`ReplicaCapacity.reports_cache`)."""

    replica_id: str
    frame_number: int
    load: ReplicaLoad
    deltas: list[TokenDelta]
    cache: CacheChanges | None = None


OnFrame = Callable[[Frame], None]
"""What gets the frames of a replica, in their order."""


class OtherWireVersion(Exception):
    """The message is of another wire version. `version` is that one; None where it cannot be read."""

    def __init__(self, version: int | None) -> None:
        super().__init__(f"speaks wire version {WIRE_VERSION}, not {version or 'this one'}")
        self.version = version


class _Head(msgspec.Struct, array_like=True, gc=False):
    """How messages that cross versions begin, in every version from 2 on."""

    wire_version: int
    name: str


def encode_tokens(token_ids: Sequence[int]) -> msgspec.Raw:
    """Token ids for `RequestSpec.prompt`: an array of msgpack."""
    return msgspec.Raw(msgspec.msgpack.encode(token_ids))


def count_tokens(tokens: msgspec.Raw) -> int:
    """How many token ids `encode_tokens` was given, from the head of msgpack's array."""
    head = bytes(memoryview(tokens)[:5])
    if head[0] == 0xDC:
        return int.from_bytes(head[1:3], "big")
    return int.from_bytes(head[1:5], "big") if head[0] == 0xDD else head[0] & 0x0F


def encode_request(request: AttemptRequest) -> bytes:
    """The bytes of `request`."""
    return msgspec.msgpack.encode(request)


_TOKENS_DECODER = msgspec.msgpack.Decoder(list[int])
_REQUEST_DECODER = msgspec.msgpack.Decoder(AttemptRequest)


def decode_request(data: bytes | memoryview) -> AttemptRequest:
    """The request in `data`. Raises `OtherWireVersion`."""
    try:
        request = _REQUEST_DECODER.decode(data)
    except msgspec.DecodeError as error:
        head = _head(data)
        raise OtherWireVersion(head.wire_version if head is not None else None) from error
    if request.wire_version != WIRE_VERSION:
        raise OtherWireVersion(request.wire_version)
    # A view would keep the whole message in memory, with its images, as long as the request runs.
    spec = msgspec.structs.replace(request.spec, prompt=request.spec.prompt.copy())
    return msgspec.structs.replace(request, spec=spec)


def encode_info(info: ReplicaInfo) -> bytes:
    """The bytes of `info`."""
    return msgspec.msgpack.encode(info)


def decode_info(data: bytes) -> ReplicaInfo:
    """The info in `data`; of another wire version only that and the replica's id are read. Raises `DecodeError`."""
    head = msgspec.msgpack.decode(data, type=_Head)
    if head.wire_version != WIRE_VERSION:
        return ReplicaInfo(head.wire_version, head.name, ReplicaLoad(0, 0, 0.0, draining=True))
    return msgspec.msgpack.decode(data, type=ReplicaInfo)


def _head(data: bytes | memoryview) -> _Head | None:
    try:
        return msgspec.msgpack.decode(data, type=_Head)
    except msgspec.DecodeError:
        return None


def encode_frame(frame: Frame) -> bytes:
    """The bytes of `frame`."""
    return msgspec.msgpack.encode(frame)


_FRAME_DECODER = msgspec.msgpack.Decoder(Frame)


def decode_frame(data: bytes | memoryview) -> Frame:
    """The frame in `data`. Raises `msgspec.DecodeError`."""
    return _FRAME_DECODER.decode(data)
