"""From what a rehearsal has measured to findings, a verdict and a page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serve_app.config.memory import GB
from serve_app.rehearse import facts, page, verdict
from serve_app.rehearse.facts import GpuMemory, KillResult, LoadResult, Phase, RehearsalFacts, TrialRequest
from serve_app.rehearse.setup import ACCEPTED
from serve_app.rehearse.verdict import Level


def test_a_phase_lasts_until_the_next_one_and_repeated_lines_are_the_same_phase() -> None:
    lines = [
        (0.5, "Checks before anything starts:"), (5.0, "Starting (a new local Ray); the whole log is in x"),
        (15.0, "  10.0 s  engine   loading vLLM (0 s)"), (25.0, "  20.0 s  engine   loading vLLM (10 s)"),
        (26.0, "  21.0 s  engine   updating (1 starting)"), (30.0, "  25.0 s  engine   compiling (15 s)"),
        (80.0, "  75.0 s  all      running"), (81.0, "  76.0 s  answers"),
    ]  # fmt: skip
    found = [(phase.name, phase.seconds) for phase in facts.phases(lines)]
    assert found == [("checks", 5.0), ("Ray and Serve", 10.0), ("loading vLLM", 15.0), ("compiling", 51.0)]
    assert facts.phases([]) == [Phase("checks", 0.0)]


def test_vllms_sizes_are_read_from_its_log() -> None:
    log = """(EngineCore pid=1) (Worker_TP0 pid=2) INFO [x.py:1] Model loading took 47.2 GiB memory and 15.5 seconds
(Worker_TP1 pid=3) INFO [x.py:1] Model loading took 47.4 GiB memory and 15.1 seconds
INFO [gpu_worker.py:1] Available KV cache memory: 18.25 GiB
INFO [x.py:1] GPU KV cache size: 2,480,128 tokens, Maximum concurrency for 262,144 tokens per request: 9.46x
INFO [x.py:1] Graph capturing finished in 41 secs, took 1.88 GiB
INFO [core.py:1] init engine (profile, create kv cache, warmup model) took 131.02 s (compilation: 60.11 s)"""
    found = facts.vllm_says(log.splitlines())
    assert found["weights_bytes"] == 47.4 * 1024**3
    assert (found["cache_tokens"], found["concurrency"], found["longest_tokens"]) == (2_480_128, 9.46, 262_144)
    assert (found["graphs_s"], found["init_s"], found["loading_s"]) == (41, 131.02, 15.5)


def good(**changes: Any) -> RehearsalFacts:
    found = RehearsalFacts(
        profile="h100-x8", is_demo=False, ranks=1, machine="8x H100", when="today", answered=True, stop_s=12.0,
        phases=[Phase("checks", 10.0), Phase("compiling", 90.0)],
        memory=GpuMemory(
            planned_weights=50.6 * GB, planned_cache=21.0 * GB, planned_tokens=2_700_000, gpu=85 * GB,
            used_before=GB, used_loaded=78 * GB, used_after=GB,
            vllm={"weights_bytes": 50.9 * GB, "cache_bytes": 20.0 * GB, "cache_tokens": 2.6e6, "concurrency": 9.0},
        ),
        requests=[TrialRequest(kind, True, 1.0, "fine") for kind in ("text", "image", "tool")],
        load=LoadResult(64, 0, 120.0, 1200.0, 3000.0, 35000.0, 24.0, 2.8, 1245.0),
        kill=KillResult(4, 4, 20.0, 25.0),
    )  # fmt: skip
    return replace(found, **changes)


def levels(found: RehearsalFacts) -> dict[str, tuple[Level, str]]:
    return {one.what: (one.level, one.change) for one in verdict.judge(found, ACCEPTED)}


def test_a_good_rehearsal_has_nothing_to_change() -> None:
    found = verdict.judge(good(), ACCEPTED)
    assert {one.level for one in found} == {Level.OK}
    assert {one.change for one in found} == {""}
    assert verdict.summary(good(), found) == (True, "READY: this machine can serve h100-x8")
    share = replace(good(), ranks=8)
    assert "one GPU's share" in verdict.summary(share, verdict.judge(share, ACCEPTED))[1]
    demo = replace(good(), is_demo=True)
    assert "nothing was shown of GPUs" in verdict.summary(demo, verdict.judge(demo, ACCEPTED))[1]


def with_memory(**changes: Any) -> RehearsalFacts:
    return good(memory=replace(good().memory, **changes))


def with_vllm(**changes: float) -> RehearsalFacts:
    return with_memory(vllm={**good().memory.vllm, **changes})


def with_load(**changes: Any) -> RehearsalFacts:
    load = good().load
    assert load is not None
    return good(load=replace(load, **changes))


@pytest.mark.parametrize(
    ("found", "what", "level", "change"),
    [
        (good(answered=False, start_error="FAIL  port 8000 taken"), "start", Level.MISS, "marked FAIL"),
        (good(answered=False, start_error="CUDA out of memory"), "start", Level.MISS, "gpu-memory-utilization"),
        (good(answered=False, start_error="NCCL error"), "start", Level.MISS, "NCCL_DEBUG"),
        (good(answered=False, start_error="?"), "start", Level.MISS, "service.log"),
        (good(phases=[Phase("compiling", 2000.0)]), "start", Level.NOTE, "compile_cache_dir"),
        (with_vllm(weights_bytes=55.0 * GB), "weights", Level.MISS, "report"),
        (with_vllm(weights_bytes=40.0 * GB), "weights", Level.NOTE, "better"),
        (with_vllm(cache_bytes=15.0 * GB), "KV cache", Level.MISS, "max-num-batched-tokens"),
        (with_vllm(cache_bytes=30.0 * GB), "KV cache", Level.NOTE, "better"),
        (with_vllm(concurrency=0.6), "KV cache size", Level.MISS, "max-model-len"),
        (with_memory(vllm={}), "memory", Level.NOTE, "service.log"),
        (with_memory(used_loaded=84 * GB), "GPU memory", Level.MISS, "lower engine.flags.gpu-memory-utilization"),
        (with_memory(used_after=20 * GB), "stop", Level.MISS, "nvidia-smi"),
        (good(left_over=["VLLM::EngineCore"]), "stop", Level.MISS, "report"),
        (good(requests=[TrialRequest("text", False, 1.0, "HTTP 500")]), "text request", Level.MISS, "service.log"),
        (
            good(requests=[*good().requests[:2], TrialRequest("tool", True, 9.0, "noise", is_proven=False)]),
            "tool request",
            Level.NOTE,
            "weights",
        ),
        (good(requests=[]), "image request", Level.MISS, "service.log"),
        (good(load=None, load_error="exit 2"), "load", Level.MISS, "load test"),
        (with_load(failed=3), "load", Level.MISS, "load.html"),
        (with_load(output_rate=300.0), "load", Level.NOTE, "preflight"),
        (with_load(tokens_per_step=1.2), "acceptance", Level.NOTE, "acceptance"),
        (good(kill=None), "killed engine", Level.MISS, "service.log"),
        (good(kill=KillResult(4, 3, 20.0, 25.0)), "killed engine", Level.MISS, "kill.json"),
        (
            good(kill=KillResult(4, 4, None, None, "the engine core was not killed")),
            "killed engine",
            Level.MISS,
            "kill.json",
        ),
        (good(kill=KillResult(4, 4, 70.0, 75.0)), "killed engine", Level.NOTE, "replicas.min: 2"),
    ],
)
def test_each_deviation_is_a_finding_with_what_to_change(
    found: RehearsalFacts, what: str, level: Level, change: str
) -> None:
    assert levels(found)[what][0] is level
    assert change in levels(found)[what][1]
    ready, said = verdict.summary(found, verdict.judge(found, ACCEPTED))
    assert ready == (level is not Level.MISS)
    assert ready or what in said


def test_an_interrupted_rehearsal_is_neither_ready_nor_missed() -> None:
    found = good(interrupted=True, requests=[], load=None, kill=None)
    assert verdict.summary(found, verdict.judge(found, ACCEPTED)) == (False, "INTERRUPTED: nothing wrong so far")
    early = replace(found, answered=False, phases=[])
    assert Level.MISS not in {one.level for one in verdict.judge(early, ACCEPTED)}


@pytest.mark.parametrize("found", [good(), good(answered=False, phases=[], load=None, kill=None, memory=GpuMemory())])
def test_the_page_shows_exactly_what_was_measured(found: RehearsalFacts) -> None:
    hostile = replace(found, warnings=("<script>alert(1)</script>",))
    findings = verdict.judge(hostile, ACCEPTED)
    text = page.as_html(hostile, findings, verdict.summary(hostile, findings)[1], has_load_page=found.load is not None)
    assert "<script" not in text
    assert all(one.what in text for one in findings)
    assert ("load.html" in text) == (found.load is not None)
    assert ("Engine killed" in text) == (found.kill is not None)
    assert text.count("<section") == text.count("</section>")
