"""Lets an engine continue a request that another engine began, as if it had produced those tokens itself.

Tokens that are only appended to the prompt are prompt to vLLM: presence and frequency penalties ignore them, a grammar
starts at its beginning in the middle of its sentence, the end of the reasoning is not noticed, a thinking budget starts
again. But vLLM has a state for such a request: that of a *preempted* one, which keeps its output and computes prompt
and output again. So the request is put into that state when it enters the engine core:

* `Request`: the emitted tokens become output tokens. The scheduler counts, stops, hashes and prefills by these.
* The grammar is advanced over them after it is compiled, in the thread that compiled it; the end of reasoning is found
  first, by the same function that finds it in a step's tokens.
* The V1 model runner's `CachedRequestState` starts with them. The V2 runner (GPUs) needs no change: it takes the
  lengths of prompt and prefill of every new request separately, because of preempted ones.

Without this plugin the request works too, as a longer prompt: it is sent in that form (`encode_resume`), which
`take_emitted` undoes.

Not exact:
* A seeded request on the V1 runner. Its random numbers come from a generator whose state died with the engine. It gets
  a new one, seeded from the seed and the number of tokens, so that a continuation does not repeat the numbers of the
  beginning. (The V2 runner derives them from seed and position.)
* Prompt log probabilities are not computed again. The first attempt has delivered them with its first token.
* The prefill of a continuation is in none of vLLM's prompt token counters, like that of a preempted request.
* On GPUs greedy decoding is not bit-exact between batches of different shape, with or without a migration.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from serve_app.vllm_patches.patching import Function, PatchTarget, minor_version, replace

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

VERSIONS_KNOWN: Final = frozenset({(0, 32), (0, 33)})
"""Versions whose scheduler and runners were read. A new one is added once the contract tests pass on it."""

MARK: Final = "step_serve_resumed"
"""In `SamplingParams.extra_args` on the way to the engine core: how many of the prompt's last tokens are output."""

EMITTED: Final = "step_serve_emitted"
"""In `SamplingParams.extra_args` inside the engine, on the way to a V1 runner: those tokens."""

REQUEST: Final = PatchTarget("vllm.v1.request", "Request", "from_engine_core_request", ("request", "block_hasher"))
GRAMMAR: Final = PatchTarget("vllm.v1.structured_output", "StructuredOutputManager", "_create_grammar", ("request",))
BOUNDS: Final = PatchTarget(
    "vllm.v1.structured_output",
    "StructuredOutputManager",
    "_get_constraint_bounds",
    ("request", "spec_tokens", "spec_tokens_committed"),
)
RUNNER_STATE: Final = PatchTarget("vllm.v1.worker.gpu_input_batch", "CachedRequestState", "__post_init__", ())
TARGETS: Final = (REQUEST, GRAMMAR, BOUNDS, RUNNER_STATE)

logger = logging.getLogger(__name__)


def encode_resume(params: SamplingParams, emitted: int, min_tokens: int) -> None:
    """Mark the last `emitted` tokens of the request's prompt as output of an earlier attempt.

    `params` ask for the rest (`max_tokens`); `min_tokens` counts from the first token of the first attempt. Marks that
    came with the request are removed: clients can set `extra_args`.
    """
    extra = {name: value for name, value in (params.extra_args or {}).items() if name not in (MARK, EMITTED)}
    if emitted:
        extra[MARK] = {"emitted": emitted, "min_tokens": min_tokens}
    params.extra_args = extra or None


def continue_requests() -> None:
    """Called in each of vLLM's processes, at times more than once."""
    from vllm import __version__

    if minor_version(__version__) not in VERSIONS_KNOWN:
        logger.warning("resume_not_exact vllm=%s: a resumed request is a longer prompt to it", __version__)
        return
    replace(REQUEST, restore_output)
    replace(GRAMMAR, advance_grammar)
    replace(RUNNER_STATE, restore_runner_state)


def restore_output(original: Function, _: ModuleType) -> Function:
    """Let a marked request enter the engine core with output tokens, like a preempted one."""

    def from_engine_core_request(cls: Any, request: EngineCoreRequest, block_hasher: Any) -> Any:
        emitted = take_emitted(request)
        restored = original(cls, request, block_hasher)
        if emitted:
            restored.append_output_token_ids(emitted)
            # The first prefill's figures belong to the attempt that had it. And the scheduler asserts that no more than
            # the prompt comes from the prefix cache, while here the output may.
            restored.prefill_stats = None
        return restored

    return from_engine_core_request


def take_emitted(request: EngineCoreRequest) -> list[int]:
    """Undo the form in which a continuation is sent: move its output out of the prompt, and restore its limits."""
    params = request.sampling_params
    extra = params.extra_args if params is not None else None
    if params is None or not extra or MARK not in extra or request.prompt_token_ids is None:
        return []
    marked = extra[MARK]
    split = len(request.prompt_token_ids) - marked["emitted"]
    emitted: list[int] = request.prompt_token_ids[split:]
    request.prompt_token_ids = request.prompt_token_ids[:split]
    params.max_tokens = (params.max_tokens or 0) + len(emitted)
    params.min_tokens = marked["min_tokens"]
    params.extra_args = {name: value for name, value in extra.items() if name != MARK} | {EMITTED: emitted}
    return emitted


def advance_grammar(original: Function, _: ModuleType) -> Function:
    """Advance a new grammar over the existing output, from the end of its reasoning on."""

    def _create_grammar(self: Any, request: Any) -> Any:
        grammar = original(self, request)
        emitted = emitted_of(request.sampling_params)
        if not emitted:
            return grammar
        start, _ = self._get_constraint_bounds(request, emitted, spec_tokens_committed=True)
        if start <= len(emitted):
            request.structured_output_request.reasoning_ended = True
            if not grammar.accept_tokens(request.request_id, list(emitted[start:])):
                raise ValueError("the request's grammar refuses what an earlier attempt has emitted under it")
        return grammar

    return _create_grammar


def restore_runner_state(original: Function, _: ModuleType) -> Function:
    """Start the V1 runner's copy of a new request with its existing output."""

    def __post_init__(self: Any) -> None:  # noqa: N807  # vLLM's name
        original(self)
        emitted = emitted_of(self.sampling_params)
        if emitted and not self.output_token_ids:
            self.output_token_ids = list(emitted)
            if self.generator is not None:
                self.generator.manual_seed(continued_seed(self.sampling_params.seed, len(emitted)))

    return __post_init__


def emitted_of(params: SamplingParams | None) -> Sequence[int]:
    """The tokens of earlier attempts, inside the engine."""
    extra = params.extra_args if params is not None else None
    return extra.get(EMITTED, ()) if extra else ()


def continued_seed(seed: int, emitted: int) -> int:
    """A seed for the rest of a request: the same each time for the same position, different from the original."""
    digest = hashlib.blake2b(f"{seed}:{emitted}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
