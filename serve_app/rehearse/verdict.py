"""From measurements to findings, each with what to change. Pure.

MISS: the service would not work here, or not as planned. NOTE: it works; know this. A part that was not reached is a
MISS, unless the user ended the rehearsal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from serve_app.rehearse.facts import GB, GpuMemory, KillResult, LoadResult, RehearsalFacts

GUESSED_BYTES = 2 * GB
"""How far `plan` may be off: activations, CUDA graphs and the runtime are estimated (`config/memory.py`)."""
LONG_START_S = 900.0
"""Without weights to read, a start is compilation, graphs and warm-up: minutes."""
FULL_RATIO = 0.97
"""A GPU fuller than this under load has no room for the next allocation of NCCL or a kernel's workspace."""
FREED_BYTES = GB
"""Memory of a GPU that may stay used after a stop: the driver's own share varies a little."""
FAIR_RATIO = 0.8
"""Of the published rate: a run of a minute has much of its ramp and its tail in it."""
ACCEPTED_OFF = 0.2
LONG_SILENCE_S = 30.0
"""Clients and load balancers wait longer (we send keep-alives), but users do not like to."""


class Level(Enum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    MISS = "MISS"


@dataclass(frozen=True)
class Finding:
    """One checked point."""

    level: Level
    what: str
    measured: str
    change: str = ""
    """What to do; empty if nothing."""


def ok(what: str, measured: str) -> Finding:
    """As it should be."""
    return Finding(Level.OK, what, measured)


def note(what: str, measured: str, change: str) -> Finding:
    """It works; know this."""
    return Finding(Level.NOTE, what, measured, change)


def miss(what: str, measured: str, change: str) -> Finding:
    """It would not work, or not as planned."""
    return Finding(Level.MISS, what, measured, change)


def judge(facts: RehearsalFacts, accepted: float) -> list[Finding]:
    """All findings, in the order of the rehearsal. `accepted`: tokens per step that were requested."""
    found = [*_start(facts)]
    if facts.answered:
        found += [*_memory(facts.memory), *_requests(facts), *_load(facts, accepted), *_kill(facts)]
    found += _stop(facts)
    if facts.interrupted:
        found.append(note("all of it", "interrupted: this is what was measured until then", "run it again to its end"))
    return found


def summary(facts: RehearsalFacts, findings: list[Finding]) -> tuple[bool, str]:
    """Whether the machine is ready, and the verdict in a sentence."""
    misses = [one.what for one in findings if one.level is Level.MISS]
    if misses:
        return False, f"NOT READY: {', '.join(misses)}"
    if facts.interrupted:
        return False, "INTERRUPTED: nothing wrong so far"
    if facts.is_demo:
        return True, "READY for the demo; nothing was shown of GPUs"
    if facts.ranks > 1:
        return True, f"READY as far as one GPU's share of {facts.profile} shows"
    return True, f"READY: this machine can serve {facts.profile}"


def _start(facts: RehearsalFacts) -> Iterator[Finding]:
    total_s = sum(phase.seconds for phase in facts.phases)
    if not facts.answered:
        if facts.interrupted and not facts.start_error:
            return
        at = f" while {facts.phases[-1].name}" if facts.phases else ""
        yield miss(
            "start", f"no answer after {total_s:.0f} s{at}: {facts.start_error}", _start_advice(facts.start_error)
        )
        return
    if total_s > LONG_START_S:
        longest = max(facts.phases, key=lambda phase: phase.seconds)
        yield note(
            "start",
            f"{total_s:.0f} s without weights, of it {longest.seconds:.0f} s {longest.name}",
            "run this again: kernels are kept in engine.compile_cache_dir, and only a first start compiles them all",
        )
        return
    yield ok("start", f"{total_s:.0f} s until it answered")


def _start_advice(error: str) -> str:
    text = error.lower()
    if "fail " in text:
        return "the lines marked FAIL say how to fix them"
    if "out of memory" in text or "no available memory" in text or "free memory on device" in text:
        return "less engine.flags.max-num-batched-tokens or gpu-memory-utilization; see who holds memory (`nvidia-smi`)"
    if "nccl" in text:
        return "the GPUs do not reach each other: `make preflight`, then NCCL_DEBUG=INFO in engine.env"
    return "service.log has all of it; its first error is the cause"


def _memory(memory: GpuMemory) -> Iterator[Finding]:
    said = memory.vllm
    weights, cache = said.get("weights_bytes"), said.get("cache_bytes")
    if memory.planned_weights is not None and weights is not None:
        yield _beside_plan("weights", weights, memory.planned_weights, too_much=weights > memory.planned_weights)
    if memory.planned_cache is not None and cache is not None:
        yield _beside_plan("KV cache", cache, memory.planned_cache, too_much=cache < memory.planned_cache)
    if memory.planned_weights is not None and (weights is None or cache is None):
        yield note("memory", "vLLM's log does not tell its sizes", "look for them in service.log")
    if said.get("concurrency", 1.0) < 1:
        tokens, longest = said.get("cache_tokens", 0), said.get("longest_tokens", 0)
        yield miss(
            "KV cache size",
            f"{tokens:,.0f} tokens hold not one request of {longest:,.0f}",
            "lower engine.flags.max-model-len, or take more GPUs or the FP8 checkpoint",
        )
    elif "cache_tokens" in said:
        yield ok("KV cache size", f"{said['cache_tokens']:,.0f} tokens")
    if memory.gpu and memory.used_loaded:
        yield _full(memory.used_loaded, memory.gpu)


def _beside_plan(what: str, measured: float, planned: float, *, too_much: bool) -> Finding:
    told = f"{measured / GB:.1f} GB a GPU, {planned / GB:.1f} planned"
    if abs(measured - planned) <= GUESSED_BYTES:
        return ok(what, told)
    if not too_much:
        return note(what, told, "better than planned: sessions that `plan` counts are too few")
    if what == "weights":
        return miss(what, told, "do not trust `plan` for this layout; please report it with rehearsal.json")
    return miss(
        what,
        told,
        "free what else is on the GPUs; raise gpu-memory-utilization by 0.02 if the GPU is not full under load; "
        "smaller max-num-batched-tokens and max_cudagraph_capture_size leave more",
    )


def _full(used: int, total: int) -> Finding:
    told = f"{used / GB:.1f} of {total / GB:.1f} GB under load"
    if used > FULL_RATIO * total:
        return miss("GPU memory", told, "lower engine.flags.gpu-memory-utilization by 0.02")
    return ok("GPU memory", told)


def _requests(facts: RehearsalFacts) -> Iterator[Finding]:
    done = {request.kind: request for request in facts.requests}
    for kind in ("text", "image", "tool"):
        request = done.get(kind)
        if request is None:
            if not facts.interrupted:
                yield miss(f"{kind} request", "not made", "see service.log")
        elif not request.is_proven:
            yield note(f"{kind} request", request.said, "ask again once the weights are here")
        elif request.ok:
            yield ok(f"{kind} request", f"{request.said}, {request.seconds:.1f} s")
        else:
            yield miss(f"{kind} request", request.said, "service.log has the engine's or ingress' error")


def _load(facts: RehearsalFacts, accepted: float) -> Iterator[Finding]:
    load = facts.load
    if load is None:
        if not facts.interrupted:
            yield miss("load", facts.load_error or "not made", "see what the load test said, and service.log")
        return
    if load.failed or not load.requests:
        told = f"{load.failed} of {load.requests} requests failed: {load.first_failure}"
        yield miss("load", told, "load.html says how they failed")
        return
    told = f"{load.output_rate:,.0f} output tok/s, TTFT {load.ttft_mean:,.0f} ms, TPOT {load.tpot_mean:.1f} ms (means)"
    if load.published_rate and load.output_rate < FAIR_RATIO * load.published_rate:
        yield note(
            "load",
            f"{told}: {load.output_rate / load.published_rate:.0%} of the published {load.published_rate:,.0f}",
            "`make preflight` looks at clocks, NVLink and FlashInfer; load.html at the steady state",
        )
    else:
        yield ok("load", told)
    yield from _accepted(facts, load, accepted)


def _accepted(facts: RehearsalFacts, load: LoadResult, accepted: float) -> Iterator[Finding]:
    if facts.is_demo or load.tokens_per_step is None:
        return
    told = f"{load.tokens_per_step:.2f} tokens a step, {accepted} were asked for"
    if abs(load.tokens_per_step - accepted) > ACCEPTED_OFF:
        yield note("acceptance", told, "rates stand for another acceptance than the published ones")
    else:
        yield ok("acceptance", told)


def _kill(facts: RehearsalFacts) -> Iterator[Finding]:
    kill = facts.kill
    if kill is None:
        if not facts.interrupted:
            yield miss("killed engine", "not tried", "see service.log")
        return
    told = f"{kill.finished} of {kill.streams} streams went on to their end{_times(kill)}"
    if kill.problem or kill.finished < kill.streams:
        yield miss("killed engine", f"{told}: {kill.problem}".removesuffix(": "), "kill.json and service.log say more")
    elif (kill.silence_s or 0.0) > LONG_SILENCE_S and facts.engines == 1:
        yield note(
            "killed engine",
            told,
            "one engine cannot fail over: two (`replicas.min: 2`, or a layout of half the GPUs) go on in a second",
        )
    else:
        yield ok("killed engine", told)


def _times(kill: KillResult) -> str:
    parts = []
    if kill.silence_s is not None:
        parts.append(f"silent for {kill.silence_s:.1f} s at most")
    if kill.recovery_s is not None:
        parts.append(f"all engines up after {kill.recovery_s:.0f} s")
    return "".join(f", {part}" for part in parts)


def _stop(facts: RehearsalFacts) -> Iterator[Finding]:
    if facts.stop_s is None:
        return
    memory = facts.memory
    if facts.left_over:
        told = f"{len(facts.left_over)} processes were left, first {facts.left_over[0]}"
        yield miss("stop", told, "they were ended; please report it with service.log")
        return
    if memory.used_before is not None and memory.used_after is not None:
        kept = memory.used_after - memory.used_before
        if kept > FREED_BYTES:
            told = f"{kept / GB:.1f} GB of a GPU were not given back"
            yield miss("stop", told, "`nvidia-smi` says who holds it; with nobody there, reset the GPU")
            return
    yield ok("stop", f"{facts.stop_s:.0f} s, nothing left")
