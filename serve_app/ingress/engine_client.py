"""To vLLM's own API server code, all engine replicas together look like one engine.

`ReplicatedEngineClient` is vLLM's `AsyncLLM` with our dispatcher in place of the engine core. What `AsyncLLM` does in
front of the core stays vLLM's code: input processing, `n` sequences per request, detokenisation, stop strings, log
probabilities, aborts. A migration is therefore invisible here: the core only takes longer.
See `docs/decisions/0001-the-engine-client-boundary.md`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.renderers import renderer_from_config
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serve_app.engine.vllm_io import image_name, pages_of
from serve_app.ingress.grammars import structured_outputs
from serve_app.ingress.grammars.checker import GrammarChecker
from serve_app.ingress.output_batches import OutputBatches
from serve_app.ingress.output_queue import OutputQueue, SendingOutputProcessor, is_plain
from serve_app.ingress.requests import preparation
from serve_app.ingress.vllm_errors import ServeHTTPError
from serve_app.protocol.errors import OtherVersion, RequestRefused, ServeError
from serve_app.protocol.messages import RequestSpec, TokenDelta, encode_tokens
from serve_app.protocol.service_class import DEFAULT_SHARE, Holder, ServiceClass
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.fleet_state import SERVES
from serve_app.router.request_context import CURRENT, RequestTrace, SubmittedRequest

DispatcherFactory = Callable[["ReplicatedEngineCore"], Dispatcher]
"""Builds the dispatcher that delivers to the given sink."""


class ReplicatedEngineCore:
    """The dispatcher behind the interface that `AsyncLLM` has to its engine core (`EngineCoreClient`)."""

    def __init__(self, dispatcher_factory: DispatcherFactory) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        self.on_failed: Callable[[str, ServeError], None] = lambda _request_id, _error: None
        self.dispatcher = dispatcher_factory(self)
        self._batches: OutputBatches[EngineCoreOutput] = OutputBatches(lambda: len(self.dispatcher.connections()))
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutput)
        self._grammars: dict[str, str] = {}

    # ---- DispatcherSink -----------------------------------------------------------------------------------------

    def deltas(self, deltas: Sequence[tuple[str, TokenDelta]]) -> None:
        """See `DispatcherSink`."""
        outputs = [
            self._as_core_output(request_id, delta)
            for request_id, delta in deltas
            if delta.finish_reason is None or not self._is_refusal(request_id, delta)
        ]
        self._batches.put(outputs)

    def failed(self, request_id: str, error: ServeError) -> None:
        """See `DispatcherSink`."""
        self._grammars.pop(request_id, None)
        self.on_failed(request_id, error)

    def _is_refusal(self, request_id: str, delta: TokenDelta) -> bool:
        """Whether a request ended because of its grammar. The engine reports only that it failed, before its first
        token or later (`vllm_patches/grammars.py`)."""
        field = self._grammars.pop(request_id, None)
        if field is None or delta.finish_reason != FinishReason.ERROR.value:
            return False
        problem = "fails, or takes too long for each token" if delta.position else "does not compile"
        self.on_failed(request_id, RequestRefused(f"{field} cannot be enforced: its grammar {problem}."))
        return True

    # ---- what AsyncLLM calls -------------------------------------------------------------------------------------

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next step of any replica, or the next steps of many in one."""
        return EngineCoreOutputs(outputs=await self._batches.take())

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Submit a request. Raises `VLLMValidationError` for what cannot be sent to a replica."""
        params = request.sampling_params
        if params is None or request.prompt_token_ids is None:
            raise VLLMValidationError("Only text generation from tokens is served here.", parameter="prompt_embeds")
        self._check_limits(params, len(request.prompt_token_ids))
        context = CURRENT.get()
        trace = RequestTrace(
            inexact=_inexact_after_resume(params), trace_context=context.trace_context if context is not None else None
        )
        if params.structured_outputs is not None:
            self._grammars[request.request_id] = context.grammar_source if context is not None else "structured_outputs"
        # Partial outputs hold tokens only, no log probabilities.
        resumable = params.logprobs is None and params.prompt_logprobs is None
        prompt = encode_tokens(request.prompt_token_ids)
        resume_key, resumes_key = context.resume_keys(prompt) if context and resumable else ("", "")
        images = {image_name(one): partial(self._encode, one.data) for one in request.mm_features or ()}
        self.dispatcher.submit(
            SubmittedRequest(
                self._spec(request, prompt, resume_key),
                trace,
                pages=pages_of(request),
                images=images,
                resumes_key=resumes_key,
                http_request_id=context.request_id if context is not None else request.request_id,
                answer_begun=lambda: context is not None and context.answer_begun,
            )
        )
        if context is not None:
            context.sequences.append(trace)
            context.submitted.set()

    def _spec(self, request: EngineCoreRequest, prompt: msgspec.Raw, resume_key: str) -> RequestSpec:
        payload = copy(request)
        payload.prompt_token_ids = []
        features = request.mm_features or ()
        payload.mm_features = [replace(one, data=None) for one in features] or None
        params = request.sampling_params
        context = CURRENT.get()
        share = context.share if context else DEFAULT_SHARE
        if request.priority > 0:  # as in vLLM, that is a lower priority
            share = replace(share, service_class=ServiceClass.BATCH)
            if context is not None:
                context.share = share
        return RequestSpec(
            request_id=request.request_id,
            prompt=prompt,
            max_tokens=params.max_tokens or 0,
            min_tokens=params.min_tokens,
            ignore_eos=params.ignore_eos,
            stop_token_ids=list(params.stop_token_ids or []),
            priority=request.priority,
            payload=[bytes(buffer) for buffer in self._encoder.encode(payload)],
            resume_key=resume_key,
            images=[image_name(one) for one in features],
            client=context.client if context else "",
            # Not vLLM's own `request.session_id`, which two clients may share.
            session=(context.session_id if context else None) or "",
            rank=int(share.service_class),
            weight=float(share.weight),
            preemptible=not _inexact_after_resume(params),
        )

    def _encode(self, image: MultiModalKwargsItem) -> list[bytearray]:
        """A processed image. The buffers of its tensors are not copied: they go into a message, and nobody writes to
        them."""
        return cast("list[bytearray]", self._encoder.encode(image))

    @staticmethod
    def _check_limits(params: SamplingParams, prompt_tokens: int) -> None:
        bad_words = sum(map(len, params.bad_words_token_ids or ()))
        try:
            preparation.check_token_counts(bad_words, (params.prompt_logprobs or 0) * prompt_tokens)
        except RequestRefused as error:
            raise ServeHTTPError(error) from error

    async def abort_requests_async(self, request_ids: Iterable[str]) -> None:
        """Stop requests wherever they are."""
        for request_id in request_ids:
            self._grammars.pop(request_id, None)
            self.dispatcher.cancel(request_id)

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        """The tasks that the replicas serve."""
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        """Nothing to do: what replicas keep of images is named by their content."""

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing to do: `app.py` closes the dispatcher, which it opened."""

    # ---- inside --------------------------------------------------------------------------------------------------

    def _as_core_output(self, request_id: str, delta: TokenDelta) -> EngineCoreOutput:
        if delta.extra is not None:
            # Tensors are views on their buffer, which torch wants to be writable.
            output: EngineCoreOutput = self._decoder.decode([bytearray(buffer) for buffer in delta.extra])
            output.request_id = request_id
            return output
        prefill = None
        if delta.cached_tokens is not None:
            prefill = PrefillStats(
                num_cached_tokens=delta.cached_tokens, num_cache_creation_tokens=delta.cache_creation_tokens or 0
            )
        return EngineCoreOutput(
            request_id=request_id,
            new_token_ids=delta.token_ids,
            finish_reason=None if delta.finish_reason is None else FinishReason(delta.finish_reason),
            stop_reason=delta.stop_reason,
            prefill_stats=prefill,
        )


class ReplicatedEngineClient(AsyncLLM):  # type: ignore[misc]  # vLLM is not read by mypy
    """An `AsyncLLM` whose engine is all replicas.

    `AsyncLLM.__init__` starts an engine process, so it is not called. Its other attributes are set here, from the same
    vLLM classes; `vllm_patches/vllm_api_check.py` reports when a new vLLM has others.
    """

    def __init__(self, vllm_config: VllmConfig, dispatcher_factory: DispatcherFactory) -> None:
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.scheduler_config = vllm_config.scheduler_config
        self.observability_config = vllm_config.observability_config
        self.log_requests = False
        self.log_stats = False
        self.logger_manager = None
        self.admission_stats = None
        self.output_handler: asyncio.Task[None] | None = None
        self.profiler = None
        self.renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        self.output_processor = SendingOutputProcessor(
            self.renderer.tokenizer, log_stats=False, stream_interval=vllm_config.scheduler_config.stream_interval
        )
        core = ReplicatedEngineCore(dispatcher_factory)
        core.on_failed = self._on_failed
        self.engine_core: Any = core
        self.dispatcher = core.dispatcher
        self.grammars = GrammarChecker(structured_outputs.worker_settings(vllm_config))

    async def add_request(self, request_id: str, prompt: Any, params: Any, *args: Any, **named: Any) -> Any:
        """See `AsyncLLM`, whose own validation of a grammar would block the event loop. The outputs of a sequence come
        through a queue that sends chunks which only repeat others."""
        if getattr(params, "structured_outputs", None) is not None:
            try:
                await structured_outputs.check(params, self.grammars)
            except ServeError as error:
                raise ServeHTTPError(error) from error
        try:
            queue = await super().add_request(request_id, prompt, params, *args, **named)
        except VLLMValidationError as error:
            error.parameter = error.parameter or _at_fault(str(error.args[0]), params)
            raise
        state = self.output_processor.request_states.get(queue.request_id)
        if state is None or (context := CURRENT.get()) is None:  # several sequences (`n`), or it has failed already
            return queue
        state.queue = OutputQueue(queue, context, is_plain=is_plain(state))
        return state.queue

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:  # noqa: ARG002  # vLLM's signature
        """Raise `ServeHTTPError` for a request that no replica would take, before any header is sent."""
        context = CURRENT.get()
        try:
            share = context.share if context else DEFAULT_SHARE
            client = context.client if context else ""
            self.dispatcher.check_room(n, Holder(client, share.service_class, share.weight))
        except ServeError as error:
            if context is not None:
                context.refused = error
            raise ServeHTTPError(error) from error

    async def check_health(self) -> None:
        """Raises `EngineDeadError` when no replica is up and a request would start none, `ServeHTTPError` when all run
        another version."""
        if self.dispatcher.fleet().state not in SERVES:
            if refused := self.dispatcher.replicas_refused():
                raise ServeHTTPError(OtherVersion(refused[0]))
            raise EngineDeadError

    def _on_failed(self, request_id: str, error: ServeError) -> None:
        state = self.output_processor.request_states.get(request_id)
        if state is None:
            return
        queue = state.queue
        family = state.parent_req.request_id if state.parent_req is not None else request_id
        for sibling in self.output_processor.abort_requests([family], internal=True):
            self.dispatcher.cancel(sibling)
        if queue is not None:
            # After the abort, which put an "aborted" output in the queue: the error replaces it.
            queue.put(ServeHTTPError(error))


def _at_fault(message: str, params: Any) -> str | None:
    """The parameter of a refusal by vLLM that lists several: the one that the request has set."""
    return next((name for name in ("logit_bias", "min_p") if name in message and getattr(params, name, None)), None)


def _inexact_after_resume(params: SamplingParams) -> tuple[str, ...]:
    """What a migration cannot continue exactly (see `vllm_patches/resume.py`)."""
    return ("seed",) if params.seed is not None and params.temperature else ()
