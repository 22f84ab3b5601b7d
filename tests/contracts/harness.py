"""What the contract suite needs of an engine, and the requests it sends."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.engine import warm_up
from serve_app.engine.cache_log import CacheMirror
from serve_app.engine.contract import Engine, EngineInfo
from serve_app.engine.fake import FakeEngine, FakeEngineConfig, Fault, FaultKind
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, RequestSpec, TokenDelta, encode_tokens
from serve_app.protocol.pages import PAGE_TOKENS, ROOT, page_hash

MODEL = Path(__file__).parents[2] / "models" / "step-tiny"

MAX_NUM_SEQS = 4
MAX_MODEL_LEN = 512

ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

VLLM_ARGV = [
    *("--model", str(MODEL), "--trust-remote-code", "--enforce-eager"),
    *("--max-num-seqs", str(MAX_NUM_SEQS), "--max-model-len", str(MAX_MODEL_LEN)),
    *("--distributed-executor-backend", "mp"),
]

MTP_ARGV = ["--speculative-config", '{"method":"mtp","num_speculative_tokens":3}']

CRASHES = "crashes-at-5"
"""A request with this id ends the fake engine when it is about to give its sixth token."""

EVICTS = "evicts"
"""A request with this id empties the fake engine's prefix cache when it starts."""

START_TIMEOUT_S = 1200
"""For the first test of a module. A start takes 20 s alone on a machine, and many times that beside other work."""

LENGTH, STOP = 1, 0

END_OF_TURN, THINK, END_OF_THINKING = 1005, 1012, 1013
"""Tokens of the demo model."""

PROMPT = list(range(20, 44))


@dataclass
class Recorder:
    """A step sink that keeps everything and can be waited on."""

    deltas: dict[str, list[TokenDelta]] = field(default_factory=dict)
    steps: list[list[str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, deltas: Sequence[TokenDelta]) -> None:
        self.steps.append([delta.attempt_id for delta in deltas])
        for delta in deltas:
            self.deltas.setdefault(delta.attempt_id, []).append(delta)
        self.changed.set()

    def tokens(self, attempt_id: str) -> list[int]:
        """The tokens of an attempt so far, after checking that each came once and in its place."""
        tokens: list[int] = []
        deltas = self.deltas.get(attempt_id, [])
        for delta in deltas:
            assert delta.position == deltas[0].position + len(tokens)
            tokens.extend(delta.token_ids)
        assert all(delta.finish_reason is None for delta in deltas[:-1])
        return tokens

    async def wait_for_tokens(self, attempt_id: str, count: int) -> None:
        while len(self.tokens(attempt_id)) < count:
            self.changed.clear()
            await self.changed.wait()


@dataclass
class Subject:
    """An engine under test. `kill` ends it as a crash would; `evict` empties the prefix cache of an idle engine."""

    engine: Engine
    info: EngineInfo
    sink: Recorder
    kill: Callable[[], Awaitable[None]]
    make_payload: Callable[..., list[bytes]]
    evict: Callable[[], Awaitable[None]] | None = None
    pages: CacheMirror = field(default_factory=CacheMirror)
    ids: Any = field(default_factory=itertools.count)

    def attempt(
        self,
        *,
        max_tokens: int,
        prompt: Sequence[int] = tuple(PROMPT),
        emitted: Sequence[int] = (),
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
        request_id: str | None = None,
        **sampling: Any,
    ) -> AttemptRequest:
        """A request that ignores the end of sequence, so that its length is known."""
        number = next(self.ids)
        return AttemptRequest(
            wire_version=WIRE_VERSION,
            attempt_id=f"attempt-{number}",
            ingress_id="test",
            spec=RequestSpec(
                request_id=request_id or f"request-{number}",
                prompt=encode_tokens(list(prompt)),
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                ignore_eos=True,
                stop_token_ids=list(stop_token_ids),
                priority=0,
                payload=self.make_payload(
                    max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=list(stop_token_ids), **sampling
                ),
            ),
            emitted_token_ids=list(emitted),
        )

    async def run(self, attempt: AttemptRequest) -> list[int]:
        """Run an attempt to its end; its tokens."""
        await self.engine.run(attempt)
        return self.sink.tokens(attempt.attempt_id)

    def cached_tokens(self, attempt: AttemptRequest) -> int | None:
        """What its first delta says."""
        return self.sink.deltas[attempt.attempt_id][0].cached_tokens

    async def wait_for_pages(self, *, held: Sequence[int] = (), gone: Sequence[int] = ()) -> None:
        """Follow the prefix cache until it holds these pages, or none of those."""
        async with asyncio.timeout(60):
            while not (self.pages.pages.issuperset(held) and self.pages.pages.isdisjoint(gone)):
                if (changes := self.engine.cache_changes()) is not None:
                    self.pages.apply(changes)
                await asyncio.sleep(0)

    def last(self, attempt: AttemptRequest) -> TokenDelta:
        return self.sink.deltas[attempt.attempt_id][-1]


def pages_of(token_ids: Sequence[int], keys: Mapping[int, Sequence[str]] | None = None) -> list[int]:
    """The hashes of the full pages of a prompt; `keys` of pages by their number."""
    pages: list[int] = []
    for number in range(len(token_ids) // PAGE_TOKENS):
        page = token_ids[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS]
        pages.append(page_hash(pages[-1] if pages else ROOT, page, (keys or {}).get(number, ())))
    return pages


def ignore_step(deltas: Sequence[TokenDelta]) -> None:
    """A sink for tests that read no tokens."""
    del deltas


async def start_fake() -> Subject:
    sink = Recorder()
    config = FakeEngineConfig(
        max_num_seqs=MAX_NUM_SEQS,
        max_model_len=MAX_MODEL_LEN,
        tokens_per_step=2,
        prefix_caching=True,
        faults=(
            Fault(FaultKind.CRASH, at_token=5, request_ids=frozenset({CRASHES})),
            Fault(FaultKind.EVICT, at_token=0, request_ids=frozenset({EVICTS})),
        ),
    )
    engine = FakeEngine(config, sink)
    info = await engine.start(print)

    async def kill() -> None:
        engine._die("killed by the test")

    subject = Subject(engine, info, sink, kill, lambda **_: [])

    async def evict() -> None:
        await subject.run(subject.attempt(max_tokens=1, request_id=EVICTS))

    subject.evict = evict
    return subject


async def start_vllm(*argv: str, warms_up: bool = False, progress: Callable[[str], object] = print) -> Subject:
    from serve_app.engine.vllm import VllmEngine
    from serve_app.engine.vllm_process import engine_core_processes

    sink = Recorder()
    engine = VllmEngine([*VLLM_ARGV, *argv], sink, warms_up=warms_up)
    info = await engine.start(progress)
    cores = engine_core_processes()

    async def kill() -> None:
        for core in cores:
            os.kill(core.pid, signal.SIGKILL)

    subject = Subject(engine, info, sink, kill, vllm_payload)

    async def evict() -> None:
        await engine._must_live().llm.reset_prefix_cache()
        await subject.run(subject.attempt(max_tokens=1))  # vLLM reports it with its next step

    subject.evict = evict
    return subject


def vllm_payload(
    mm_features: Any = None,
    temperature: float = 0.0,
    json_schema: str | None = None,
    *,
    reasoning_ended: bool | None = None,
    cache_salt: str | None = None,
    structured_outputs: Mapping[str, Any] | None = None,
    backend: str = "xgrammar",
    **sampling: Any,
) -> list[bytes]:
    """What an ingress sends as the engine's own form of a request. Only an answer under a grammar may end."""
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.v1.serial_utils import MsgpackEncoder

    asked = {"json": json_schema} if json_schema is not None else structured_outputs
    params = SamplingParams(temperature=temperature, ignore_eos=asked is None, **sampling)
    params.update_from_generation_config({}, END_OF_TURN)
    if asked is not None:
        params.structured_outputs = StructuredOutputsParams(**asked)
        params.structured_outputs._backend = backend
    request = warm_up.core_request(
        "named by the attempt", [], params, mm_features=mm_features, reasoning_ended=reasoning_ended
    )
    request.cache_salt = cache_salt
    return [bytes(buffer) for buffer in MsgpackEncoder().encode(request)]
