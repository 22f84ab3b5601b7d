"""The measurements of the running service: three requests, a load, a killed engine core; and its memory."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from loadtest.data.images import data_url, draw, png
from loadtest.metrics.reference_results import REFERENCE_MACHINES
from serve_app.cli.config_checks import layout_of, shape_of
from serve_app.config import hardware, memory
from serve_app.config.schema import AppConfig
from serve_app.rehearse import facts
from serve_app.rehearse.facts import GpuMemory, KillResult, LoadResult, RehearsalFacts, TrialRequest
from serve_app.rehearse.service import Say, run_tool
from serve_app.rehearse.setup import HOST, RehearsalPlan

TEXT_TOKENS, IMAGE_SIDE, LEAST_IMAGE_TOKENS = 32, 448, 169
CITIES = ("Oslo", "Paris")
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": list(CITIES)}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TOOL_TOKENS, THINKING_TOKENS = 1024, 16
REQUEST_S = 300.0
FREEING_TRIES = 10
"""A second apart."""

PUBLISHED_LOAD = ("--preset", "published-8k-2k", "--num-prompts", "256")
"""Fewer prompts than published: a minute does not use more, and making them takes a minute."""
CPU_LOAD = (
    *("--input-len", "256", "--output-len", "128", "--num-prompts", "2000"),
    *("--max-concurrency", "16", "--ignore-eos"),
)
"""A small load: a CPU would process the first published prompts for an hour."""
STREAMS = 4
STREAM_TOKENS = 600
"""Long enough that streams are open while an engine is killed, and migrate."""


def three_requests(plan: RehearsalPlan) -> list[TrialRequest]:
    """A text, an image and a forced tool call. Only sizes and form are checked, because the words are random."""
    with httpx.Client(base_url=f"http://{HOST}:{plan.port}", timeout=REQUEST_S) as client:
        asked = _Asked(client, plan.config.model.served_name)
        return [asked.about("text", asked.text), asked.about("image", asked.image), asked.about("tool", asked.tool)]


class _Wrong(Exception):
    """The answer is not what was requested."""


class _Unproven(Exception):
    """Random output did not end: neither right nor wrong could be seen."""


class _Asked:
    def __init__(self, client: httpx.Client, model: str) -> None:
        self._client = client
        self._model = model
        self._prompt_tokens = 0

    def about(self, kind: str, ask: Any) -> TrialRequest:
        began_s = time.monotonic()
        try:
            said, ok = str(ask()), True
        except _Unproven as error:
            return TrialRequest(kind, ok=True, seconds=time.monotonic() - began_s, said=str(error), is_proven=False)
        except (_Wrong, httpx.HTTPError, LookupError, TypeError, ValueError) as error:
            said, ok = f"{type(error).__name__.lstrip('_')}: {error}", False
        return TrialRequest(kind, ok, time.monotonic() - began_s, said[:500])

    def text(self) -> str:
        usage = self._ask("Hello", max_tokens=TEXT_TOKENS, ignore_eos=True)["usage"]
        self._prompt_tokens = usage["prompt_tokens"]
        if usage["completion_tokens"] != TEXT_TOKENS:
            raise _Wrong(f"{TEXT_TOKENS} tokens were asked for, {usage['completion_tokens']} came")
        return f"{TEXT_TOKENS} tokens"

    def image(self) -> str:
        url = data_url(png(draw(IMAGE_SIDE, IMAGE_SIDE, np.random.default_rng(0))))
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Hello"}]
        usage = self._ask(parts, max_tokens=TEXT_TOKENS, ignore_eos=True)["usage"]
        more = usage["prompt_tokens"] - self._prompt_tokens
        if more < LEAST_IMAGE_TOKENS:
            raise _Wrong(f"an image takes {LEAST_IMAGE_TOKENS} tokens and more; the prompt grew by {more}")
        return f"{more} tokens of prompt for {IMAGE_SIDE} x {IMAGE_SIDE} pixels"

    def tool(self) -> str:
        choice = {"type": "function", "function": {"name": "weather"}}
        # The grammar begins where thinking ends, which noise does not do by itself.
        limits = {"max_tokens": TOOL_TOKENS, "thinking_token_budget": THINKING_TOKENS}
        answer = self._ask("Weather?", tools=[TOOL], tool_choice=choice, **limits)["choices"][0]
        calls = answer["message"].get("tool_calls") or []
        if answer["finish_reason"] == "length":
            raise _Unproven(f"{TOOL_TOKENS} tokens of noise, and no end of the call")
        if not calls:
            raise _Wrong(f"no tool call, but {answer['message']}")
        called = calls[0]["function"]
        if json.loads(called["arguments"])["city"] not in CITIES:
            raise _Wrong(f"arguments that the schema does not allow: {called['arguments']}")
        return f"{called['name']}({called['arguments']})"

    def _ask(self, content: object, **more: object) -> dict[str, Any]:
        body = {"model": self._model, "messages": [{"role": "user", "content": content}], **more}
        answer = self._client.post("/v1/chat/completions", json=body)
        if answer.status_code != httpx.codes.OK:
            raise _Wrong(f"HTTP {answer.status_code}: {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found


def load(plan: RehearsalPlan, dashboard: str, load_s: float, out: Path, say: Say) -> LoadResult | str:
    """The published load for so long, by the load test, which writes its own page. A string is the reason why there is
    no result."""
    result = out / "load.json"
    result.unlink(missing_ok=True)
    shape = CPU_LOAD if plan.is_demo else PUBLISHED_LOAD
    command = [
        "loadtest", "run", "--url", f"http://{HOST}:{plan.port}", "--tokenizer", str(plan.model), *shape,
        "--duration", f"{load_s:g}", "--json", str(result), "--html", str(out / "load.html"),
        "--label", f"rehearsal of {plan.profile}", *(("--ray-dashboard", dashboard) if dashboard else ()),
    ]  # fmt: skip
    status, last = run_tool(command, 20 * load_s + 600, say)
    if not result.is_file():
        return f"the load test ended with {status}: {last}"
    found = json.loads(result.read_text(encoding="utf-8"))
    failures = found["loadtest"]["failures"]
    machine = f"{plan.config.replicas.gpus_per_replica}x {plan.config.replicas.accelerator_type}"
    rates = {one.name: float(one.output_rate) for one in REFERENCE_MACHINES}
    return LoadResult(
        requests=found["completed"] + found["failed"],
        failed=found["failed"],
        seconds=found["duration"],
        output_rate=found["output_throughput"],
        ttft_mean=found["mean_ttft_ms"],
        ttft_p99=found["p99_ttft_ms"],
        tpot_mean=found["mean_tpot_ms"],
        tokens_per_step=found.get("spec_decode_acceptance_length"),
        published_rate=rates.get(machine) if plan.ranks == 1 else None,
        first_failure=str(failures[0]["examples"][0]["error"])[:300] if failures else "",
    )


def kill(plan: RehearsalPlan, dashboard: str, out: Path, say: Say) -> KillResult:
    """Kill an engine core under open streams, with `chaos`, and measure how long they pause."""
    result = out / "kill.json"
    result.unlink(missing_ok=True)
    limit_s = plan.config.engine.start_timeout_s + 300
    command = [
        "chaos", "--fault", "kill-engine", "--url", f"http://{HOST}:{plan.port}",
        "--dashboard", dashboard, "--apis", "chat", "--kinds", "text", "--at-token", "100",
        "--streams", str(STREAMS), "--concurrency", str(STREAMS), "--distinct", str(STREAMS),
        "--tokens", f"{STREAM_TOKENS}-{STREAM_TOKENS}", "--deadline-s", f"{limit_s:g}", "--recover-s", f"{limit_s:g}",
        "--json", str(result),
    ]  # fmt: skip
    # Whether answers are the same is not asked here: forced acceptance draws them at random.
    status, last = run_tool(command, 2 * limit_s, lambda line: say(line) if not OF_ANSWERS.search(line) else None)
    if not result.is_file():
        return KillResult(STREAMS, 0, None, None, f"chaos ended with {status}: {last}")
    found = json.loads(result.read_text(encoding="utf-8"))
    injected = [fault for fault in found["faults"] if not fault["error"]]
    errors = [one["error"] for one in found["streams"] if one["error"]]
    problems = [*found["problems"], *errors[:1], *([] if injected else ["the engine core was not killed"])]
    gaps = found["gap_across_fault"] or {}
    return KillResult(
        streams=STREAMS,
        finished=found["finished"],
        silence_s=gaps.get("worst_s"),
        recovery_s=max(found["recovery_s"], default=None),
        problem="; ".join(map(str, problems))[:500],
    )


OF_ANSWERS = re.compile(r"DIFFERS|not deterministic|^\s*(PASSED|FAILED)$")


def plan_memory(config: AppConfig) -> GpuMemory:
    """The plan of this configuration on these GPUs, and their memory before the start."""
    found = GpuMemory()
    shape, layout = shape_of(config), layout_of(config, [hardware.this_machine()])
    if shape is not None and layout is not None:
        room = memory.memory_capacity(shape, layout)
        found.planned_weights, found.planned_cache = room.weights_bytes, room.cache_bytes
        found.planned_tokens = room.tokens()
    found.gpu, found.used_before = gpu_memory()
    return found


def gpu_memory() -> tuple[int | None, int | None]:
    """Total and used bytes of the fullest GPU, by NVML; None where there is none."""
    from serve_app.cli.gpu_facts import this_box

    gpus = this_box({}, None).gpus
    fullest = max(gpus, key=lambda gpu: gpu.used_bytes, default=None)
    return (None, None) if fullest is None else (fullest.total_bytes, fullest.used_bytes)


def memory_after(before: int | None) -> int | None:
    """Used memory of the fullest GPU, after the driver has taken back the memory of ended processes."""
    for _ in range(FREEING_TRIES):
        _, used = gpu_memory()
        if used is None or before is None or used <= before:
            break
        time.sleep(1.0)
    return used


def read_log(found: RehearsalFacts, log: Path) -> None:
    """Read vLLM's figures from the service's log."""
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as lines:
            found.memory.vllm = facts.vllm_says(lines)
