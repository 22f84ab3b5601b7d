"""What crosses between an ingress replica and an engine replica.

Control goes one way, one message per attempt (`AttemptRequest`). Data comes back in `Frame`s: one per engine step and
ingress, carrying every one of its attempts' new tokens, the replica's load, and the step counter that proves progress.
Both are msgpack. Nothing here knows vLLM: what only vLLM understands travels as opaque bytes that
`serve_app/engine/vllm.py` and the ingress' front end write and read with vLLM's own encoder."""

from __future__ import annotations

import msgspec

WIRE_VERSION = 1
"""Raised when a field changes meaning. During a rolling upgrade an old ingress may meet a new replica: a replica
refuses an attempt of another version (`wire_version`), and the ingress then tries one of its own."""


class AttemptRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt to finish one request on one replica.

    `prompt_token_ids` never changes between attempts; `emitted_token_ids` holds what earlier attempts gave, which the
    engine must continue after as if it had produced them itself. `max_tokens` and `min_tokens` count from the first
    token of the first attempt. `payload` is vLLM's request (without the token ids), in the buffers of vLLM's encoder.
    `resume_key` is under which what it says can be asked for if its stream breaks off (`engine/partial_outputs.py`);
    empty: under none. `admitted`: a replica had taken the request before, so none refuses it for want of room; None is
    what an ingress says that does not know of such refusals.
    """

    wire_version: int
    attempt_id: str
    request_id: str
    ingress_id: str
    prompt_token_ids: list[int]
    emitted_token_ids: list[int]
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: list[int]
    priority: int
    payload: list[bytes]
    resume_key: str = ""
    admitted: bool | None = None


class TokenDelta(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one engine step added to one attempt.

    `position` is the number of tokens that the request had before this delta, earlier attempts included: a gap or an
    overlap shows at once. `finish_reason` is vLLM's `FinishReason` as an int, None while the attempt runs.
    `cached_tokens` and `cache_creation_tokens` come with the first delta. `extra` is vLLM's whole `EngineCoreOutput` in
    its own encoding, sent only when there is more to say than tokens (log probabilities, prompt log probabilities)."""

    attempt_id: str
    position: int
    token_ids: list[int]
    finish_reason: int | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None
    cache_creation_tokens: int | None = None
    extra: list[bytes] | None = None


class Load(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a replica says of itself with every frame. Facts for routing, health and scaling.

    `steps` counts engine steps since start; `step_age_s` is the time since the last one, 0 when nothing is unfinished.
    `draining` replicas take no new work: they are about to go, or their engine is dead.
    """

    running: int
    waiting: int
    unfinished: int
    queued_prompt_tokens: int
    kv_usage_ratio: float
    max_num_seqs: int
    steps: int
    step_age_s: float
    draining: bool


class DataChannelAddress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a replica takes data channels (`protocol/data_channel.py`), and what a caller must know to open one."""

    host: str
    port: int
    secret: bytes


class Capacity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How much a replica takes, and how fast it gets done. It changes slowly, so it does not come with every step.

    `max_unfinished` attempts may run and wait here (None: a replica that does not say). One runs for `service_s`, as
    measured (None: not yet). `ingresses` are connected. The engine took `start_s` to start.
    """

    max_unfinished: int | None = None
    service_s: float | None = None
    ingresses: int = 1
    start_s: float | None = None


class ReplicaInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a replica says of itself when asked. Without `line`, everything goes by Serve's calls.

    `quarantine` is what ingresses have told it: who has cost a replica, and how many seconds that is still held against
    them (`poison.Quarantine`).

    An ingress sends nothing to a replica of another `wire_version` or vLLM (`router/engine_versions.py`).
    """

    replica_id: str
    load: Load
    line: DataChannelAddress | None = None
    capacity: Capacity = Capacity()
    vllm_version: str = ""
    wire_version: int = 1  # of replicas that do not say
    quarantine: dict[str, float] = {}


class Frame(msgspec.Struct, array_like=True, gc=False):
    """One message of the stream between a replica and an ingress. `sequence` rises by one per frame of the stream."""

    replica_id: str
    sequence: int
    load: Load
    deltas: list[TokenDelta]


def encode_request(request: AttemptRequest) -> bytes:
    """The bytes of `request`."""
    return msgspec.msgpack.encode(request)


def decode_request(data: bytes) -> AttemptRequest:
    """The request in `data`. Raises `msgspec.DecodeError` where it is not one."""
    return msgspec.msgpack.decode(data, type=AttemptRequest)


def encode_frame(frame: Frame) -> bytes:
    """The bytes of `frame`."""
    return msgspec.msgpack.encode(frame)


_FRAME_DECODER = msgspec.msgpack.Decoder(Frame)


def decode_frame(data: bytes | memoryview) -> Frame:
    """The frame in `data`. Raises `msgspec.DecodeError` where it is not one."""
    return _FRAME_DECODER.decode(data)
