"""Limits the damage of a grammar in an engine to its own request: other requests, steps and the engine go on.

The ingress has tried each grammar (`ingress/grammars/checker.py`). The rest can only be known in an engine, or later:

* vLLM compiles with the library that an engine's first grammar selected, for the engine's life. A grammar that only
  another library takes (`auto` falls back to guidance) then fails, or is refused (0.33). Here each request has its own.
* A grammar that is not compiled after `COMPILE_LIMIT_S` counts as failed.
* All streams of an engine wait while a grammar's next tokens are computed, and an error there ends the engine. A
  grammar that is slow more than `SLOW_MASKS` times, or fails, ends its request: it "rejects" the next token, which vLLM
  answers with that request's error.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import ModuleType
from typing import Any, Final, TypeVar

from serve_app.vllm_patches.patching import Function, PatchTarget, replace

COMPILE_LIMIT_S: Final = 120.0
"""On the clock, the wait for a compiler thread included. The ingress allows 8 s of CPU time; beyond this a thread hangs
or so much is compiled that the request is better tried again."""

SLOW_MASK_S: Final = 0.1
"""CPU time for one token's mask. Twice what the ingress allows (`grammar_jobs.MAX_TOKEN_S`), for it has tried a few
tokens only, and what is slow there must not get as far as here."""

SLOW_MASKS: Final = 8
"""So many masks may be slow: a mask may be computed once and cached. 8 of 0.1 s do not change a p99."""

INIT: Final = PatchTarget("vllm.v1.structured_output", "StructuredOutputManager", "grammar_init", ("request",))
READY: Final = PatchTarget(
    "vllm.v1.structured_output.request", "StructuredOutputRequest", "_check_grammar_completion", ()
)
XGRAMMAR: Final = PatchTarget(
    "vllm.v1.structured_output.backend_xgrammar",
    "XgrammarBackend",
    "compile_grammar",
    ("request_type", "grammar_spec", "stop_token_ids"),
)
GUIDANCE: Final = PatchTarget(
    "vllm.v1.structured_output.backend_guidance",
    "GuidanceBackend",
    "compile_grammar",
    ("request_type", "grammar_spec", "stop_token_ids"),
)
TARGETS: Final = (INIT, READY, XGRAMMAR, GUIDANCE)

MANAGERS: Final = "_step_serve_managers"
SINCE: Final = "_step_serve_since_s"

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def keep_to_their_requests() -> None:
    """Called in each of vLLM's processes, at times more than once."""
    replace(INIT, choose_by_request)
    replace(READY, wait_no_longer)
    replace(XGRAMMAR, guard)
    replace(GUIDANCE, guard)


def choose_by_request(original: Function, _: ModuleType) -> Function:
    """Give each back end a manager of its own, since vLLM's manager keeps one: copies that share everything else."""

    def grammar_init(self: Any, request: Any) -> None:
        if request.structured_output_request is None:
            return
        managers: dict[str | None, Any] = self.__dict__.setdefault(MANAGERS, {})
        name = request.sampling_params.structured_outputs._backend  # noqa: SLF001  # vLLM's record of its choice
        manager = managers.get(name)
        if manager is None:
            manager = copy.copy(self)
            manager.backend = manager.backend_name = None  # the name is 0.33's
        original(manager, request)
        managers[name] = manager  # not before: one that cannot be had is an error each time
        if self.backend is None:  # allocates the bitmasks, which are the same for all
            self.backend = manager.backend

    return grammar_init


def wait_no_longer(original: Function, _: ModuleType) -> Function:
    """Stop waiting for a compiler thread that cannot be stopped."""

    def _check_grammar_completion(self: Any) -> bool:
        if isinstance(self._grammar, Future) and not self._grammar.done():
            now_s = time.monotonic()
            waited_s = now_s - self.__dict__.setdefault(SINCE, now_s)
            if waited_s < COMPILE_LIMIT_S:
                return False
            self._grammar.cancel()
            self._grammar = TimeoutError(f"not compiled after {COMPILE_LIMIT_S:.0f} s")
        ready: bool = original(self)
        return ready

    return _check_grammar_completion


def guard(original: Function, module: ModuleType) -> Function:
    """Wrap what is compiled in a `GuardedGrammar`."""
    module.StructuredOutputGrammar.register(GuardedGrammar)

    def compile_grammar(self: Any, *args: Any, **named: Any) -> GuardedGrammar:
        grammar = original(self, *args, **named)
        # vLLM only logs what guidance finds wrong, and goes on without a grammar.
        matcher = getattr(grammar, "ll_matcher", None)
        if matcher is not None and (problem := matcher.get_error()):
            raise ValueError(problem)
        return GuardedGrammar(grammar)

    return compile_grammar


def has_failed(grammar: object) -> bool:
    """Whether a grammar has raised, or has been slow too often."""
    return isinstance(grammar, GuardedGrammar) and grammar.failed


class GuardedGrammar:
    """vLLM's `StructuredOutputGrammar`, which never raises and fails when it is slow too often. A failed one allows
    every token and accepts none."""

    def __init__(self, grammar: Any) -> None:
        self._grammar = grammar
        self._slow = 0
        self.failed = False

    def fill_bitmask(self, bitmask: Any, index: int) -> None:
        """See vLLM's."""
        began_s = time.thread_time()
        self._try(self._grammar.fill_bitmask, None, bitmask, index)
        self._slow += time.thread_time() - began_s > SLOW_MASK_S
        if self._slow > SLOW_MASKS and not self.failed:
            logger.warning("a grammar ends its request: finding the tokens that it allows takes too long")
            self.failed = True
        if self.failed:
            bitmask[index].fill_(-1)

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """See vLLM's: false ends the request with an error."""
        return self._try(self._grammar.accept_tokens, False, request_id, tokens)

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """See vLLM's."""
        return self._try(self._grammar.validate_tokens, [], tokens)

    def rollback(self, num_tokens: int) -> None:
        """See vLLM's."""
        self._try(self._grammar.rollback, None, num_tokens)

    def is_terminated(self) -> bool:
        """See vLLM's."""
        return self._try(self._grammar.is_terminated, False)

    def reset(self) -> None:
        """See vLLM's."""
        self._try(self._grammar.reset, None)

    def _try(self, method: Callable[..., Any], otherwise: Result, *args: Any) -> Result:
        if self.failed:
            return otherwise
        try:
            result: Result = method(*args)
        except Exception:  # of a native library; raised in the engine's loop, any of them ends the engine
            logger.warning("a grammar ends its request: it failed", exc_info=True)
            self.failed = True
            return otherwise
        return result
