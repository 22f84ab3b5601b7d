"""`python -m serve_app.ingress.grammars.vllm_worker`: tries grammars with vLLM's code, each in a child process.

A compiler that explodes can be stopped in no other way: it is C++ that checks no deadline, and no thread can be killed.
So this process loads what compiling needs, and forks a child for each grammar, with limited CPU time and memory. The
child validates as vLLM's front end does, compiles as its engine does, and generates some tokens, because a grammar may
compile at once and then take a tenth of a second for each token. Whatever ends the child is the grammar's fault.

It has one thread, or a fork would not be safe. (The child may start one.)
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import resource
import select
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Final

import msgspec
import psutil
import torch
from vllm.plugins import load_general_plugins
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tokenizers import get_tokenizer
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_types import StructuredOutputBackend, StructuredOutputGrammar
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.request import get_structured_output_key

from serve_app.ingress.grammars import jobs
from serve_app.ingress.grammars.jobs import GrammarVerdict, Job, WorkerSettings
from serve_app.ingress.grammars.syntax import check_expression, check_patterns
from serve_app.vllm_patches.grammars import has_failed

TOO_LONG: Final = "it takes too long to compile; make it simpler"
TOO_LARGE: Final = "it takes too much memory to compile, or is nested too deeply; make it simpler"
TOO_SLOW: Final = "finding the tokens that it allows takes too long; make it simpler"

FAILS: Final = "finding the tokens that it allows fails"

MAX_PROBLEM_CHARS: Final = 500

STACK_BYTES: Final = 4 << 20
"""Stack of the compiling thread: half of an engine's compiler threads (glibc's default), so that a recursion deep
enough to end an engine ends this process first."""

NICE: Final = 10
"""Below the ingress, and below the engine on a small machine: both have clients waiting for each token."""

QUICK_CPU_S: Final = 0.25
"""CPU time that ordinary grammars need, doubled. A slower one continues with CPU time that no other process wants:
several compiler threads at `NICE` still take half a core from the engine of a small machine."""

CHECK_PERIOD_S: Final = 0.05
"""How often the CPU time of a quick child is read."""

CHANGED_BY_VLLM: Final = ("choice", "grammar", "_backend", "_backend_was_auto")


class Grammars:
    """vLLM's validation and its back ends, as an engine of these settings has them."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        load_general_plugins()  # ours changes how the demo compiles
        self._tokenizer = get_tokenizer(
            settings.tokenizer,
            tokenizer_mode=settings.tokenizer_mode,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
        self._outputs_config = SimpleNamespace(
            backend=settings.backend,
            disable_any_whitespace=settings.disable_any_whitespace,
            disable_additional_properties=settings.disable_additional_properties,
        )
        tokens = settings.speculative_tokens
        self._config = SimpleNamespace(
            structured_outputs_config=self._outputs_config,
            model_config=SimpleNamespace(is_diffusion=False, hf_config=SimpleNamespace(model_type=settings.model_type)),
            speculative_config=SimpleNamespace(num_speculative_tokens=tokens) if tokens else None,
        )
        # Here, and not in each child: reading a large vocabulary takes a second.
        self._backends: dict[str, StructuredOutputBackend] = {"xgrammar": self._backend(XgrammarBackend)}
        if GuidanceBackend.is_tokenizer_supported(self._tokenizer):
            self._backends["guidance"] = self._backend(GuidanceBackend)

    def _backend(self, kind: Any) -> StructuredOutputBackend:
        return kind(vllm_config=self._config, tokenizer=self._tokenizer, vocab_size=self._settings.vocab_size)

    def examine(self, job: Job) -> GrammarVerdict:
        """Try it. Raises what vLLM and its back ends raise."""
        asked = StructuredOutputsParams(**json.loads(job.fields))
        check_patterns(asked.json)
        params = SamplingParams(structured_outputs=asked)
        params._validate_structured_outputs(self._config.model_config, self._outputs_config, self._tokenizer)  # noqa: SLF001  # vLLM's front end calls it, too
        if asked.regex and asked._backend != "xgrammar":  # noqa: SLF001  # vLLM's record of its choice
            check_expression(asked.regex)
        backend = self._backends.get(asked._backend or "")  # noqa: SLF001  # as above
        if backend is not None:
            self._generate(backend, backend.compile_grammar(*get_structured_output_key(asked)))
        return GrammarVerdict(fields={name: getattr(asked, name) for name in CHANGED_BY_VLLM})

    def _generate(self, backend: StructuredOutputBackend, grammar: StructuredOutputGrammar) -> None:
        """Generate tokens that the grammar allows. Raises `ValueError` where that is slow (once may be chance)."""
        mask, choose, slow = backend.allocate_token_bitmask(1), random.Random(0), 0
        for _ in range(jobs.TRIED_TOKENS):
            if grammar.is_terminated():
                return
            began_s = time.thread_time()
            grammar.fill_bitmask(mask, 0)
            slow += time.thread_time() - began_s > self._settings.max_token_s
            if slow > 1:
                raise ValueError(TOO_SLOW)
            if has_failed(grammar):  # by our own plugin, as in an engine
                raise ValueError(FAILS)
            token = _any_token(mask[0], choose, self._settings.vocab_size)
            if token is None or not grammar.accept_tokens("", [token]):
                return


def _any_token(mask: Any, choose: random.Random, vocab_size: int) -> int | None:
    words = torch.nonzero(mask).flatten().tolist()
    if not words:
        return None
    word = choose.choice(words)
    bits = int(mask[word]) & 0xFFFFFFFF
    token = word * 32 + choose.choice([bit for bit in range(32) if bits >> bit & 1])
    return token if token < vocab_size else None


def examine_in_child(grammars: Grammars, settings: WorkerSettings, job: Job) -> GrammarVerdict:
    """The result for a grammar, whatever it does to the process that tries it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_child(grammars, settings, job, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        # The child may end at any moment, and a container may forbid this: neither is the grammar's fault.
        with contextlib.suppress(OSError, psutil.Error):
            _deprioritise_when_slow(child, pipe)
        body = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and body:
        return msgspec.msgpack.decode(body, type=GrammarVerdict)
    was_slow = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    return GrammarVerdict(problem=TOO_LONG if was_slow else TOO_LARGE)


def _deprioritise_when_slow(child: int, pipe: IO[bytes]) -> None:
    """Return when the child answers, or when it is slow and has been given the lowest priority of the machine. Threads
    that it starts later inherit that."""
    process = psutil.Process(child)
    while not select.select([pipe], [], [], CHECK_PERIOD_S)[0]:
        times = process.cpu_times()
        if times.user + times.system > QUICK_CPU_S:
            for thread in process.threads():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))
            return


def _run_child(grammars: Grammars, settings: WorkerSettings, job: Job, pipe: int) -> None:
    try:
        _limit(settings)
        threading.stack_size(STACK_BYTES)
        trial = threading.Thread(target=_send_result, args=(grammars, job, pipe))
        trial.start()
        trial.join()
    finally:
        os._exit(0)  # the child must not run the parent's clean-up


def _limit(settings: WorkerSettings) -> None:
    cpu_s = settings.max_compile_cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    address_space = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    limit = address_space + settings.max_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _send_result(grammars: Grammars, job: Job, pipe: int) -> None:
    try:
        verdict = grammars.examine(job)
    except MemoryError:
        verdict = GrammarVerdict(problem=TOO_LARGE)
    except Exception as error:  # noqa: BLE001  # whatever three libraries raise, it would be raised in an engine, too
        verdict = GrammarVerdict(problem=_problem(error))
    with os.fdopen(pipe, "wb") as file_:
        file_.write(msgspec.msgpack.encode(verdict))


def _problem(error: Exception) -> str:
    """The message for the client: the library's own words, without its source location."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if "bad_alloc" in text:
        return TOO_LARGE
    if isinstance(error, KeyError):
        return f"{text} is missing"
    return text[:MAX_PROBLEM_CHARS]


def read_message(stream: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    head = stream.read(4)
    return stream.read(int.from_bytes(head, "big")) if len(head) == 4 else None  # bytes of length


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries must not print between the messages
    os.nice(NICE)
    told = read_message(sys.stdin.buffer)
    if told is None:
        return
    settings = msgspec.msgpack.decode(told, type=WorkerSettings)
    grammars = Grammars(settings)
    gc.freeze()  # a collection in a child would copy all of this process' memory
    answers.write(jobs.encode(GrammarVerdict()))  # ready
    answers.flush()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the end of our input ends us
    while (message := read_message(sys.stdin.buffer)) is not None:
        verdict = examine_in_child(grammars, settings, msgspec.msgpack.decode(message, type=Job))
        answers.write(jobs.encode(verdict))
        answers.flush()


if __name__ == "__main__":
    main()
