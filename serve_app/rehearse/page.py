"""The page of a rehearsal: one self-contained file, in the load test's style (`loadtest/report/html.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from loadtest.report.html import document, page_header, table_section, tiles_section, warnings_section
from loadtest.report.table import Table, number
from serve_app.rehearse.facts import GB, Phase, RehearsalFacts
from serve_app.rehearse.verdict import Finding, Level

COLOURS = 7
"""`--c0` to `--c6` of the style sheet."""
NARROW_SHARE = 0.07
"""Below it a bar's part has no room for its seconds."""

LOAD_PAGE = (
    "<section>The load's own page, with plots: <a href='load.html' style='color:var(--c0)'>load.html</a></section>"
)

VLLMS_NAMES = {
    "weights_bytes": "weights, as loaded",
    "cache_bytes": "available for the KV cache",
    "graphs_bytes": "CUDA graphs",
    "cache_tokens": "KV cache size",
    "longest_tokens": "longest request",
    "concurrency": "such requests at a time",
    "loading_s": "loading (dummy weights)",
    "compile_s": "torch.compile",
    "graphs_s": "capturing CUDA graphs",
    "init_s": "profile, cache, warm-up",
}


def as_html(facts: RehearsalFacts, findings: Sequence[Finding], said: str, *, has_load_page: bool) -> str:
    """The page."""
    what = "the demo" if facts.is_demo else f"one of {facts.ranks} shares" if facts.ranks > 1 else "whole layout"
    about = [facts.machine, what, "dummy weights", facts.when]
    missed = [one for one in findings if one.level is Level.MISS]
    body = [
        page_header("Rehearsal", facts.profile, about, under=said),
        warnings_section(facts.warnings),
        tiles_section(list(_tiles(facts, len(missed), len(findings)))),
        table_section(_verdict(findings)),
        LOAD_PAGE if has_load_page else "",
        _start(facts.phases),
        table_section(memory) if (memory := _memory(facts)).rows else "",
    ]
    return document(f"Rehearsal: {facts.profile}", body)


def _tiles(facts: RehearsalFacts, missed: int, looked_at: int) -> Iterator[tuple[str, str, str, str, bool]]:
    verdict = f"{missed} of {looked_at} points missed" if missed else "nothing to change" if facts.answered else ""
    yield "Verdict", "NO" if missed else "yes", "", verdict, bool(missed)
    start_s = sum(phase.seconds for phase in facts.phases)
    yield "Start", number(start_s, 0), "s", "until it answered" if facts.answered else "no answer", not facts.answered
    cache = facts.memory.vllm.get("cache_tokens")
    if cache is not None:
        planned = facts.memory.planned_tokens
        yield "KV cache", number(cache / 1e6, 2), "M tokens", f"{planned / 1e6:.2f} M planned" if planned else "", False
    if facts.load is not None:
        load = facts.load
        yield "Output", number(load.output_rate, 0), "tok/s", f"TTFT {number(load.ttft_mean, 0)} ms", False
        failed = f"{load.failed} failed" if load.failed else "all succeeded"
        yield "Requests", f"{load.requests - load.failed:,}", f"of {load.requests:,}", failed, load.failed > 0
    if facts.kill is not None:
        kill = facts.kill
        value = "?" if kill.silence_s is None else number(kill.silence_s)
        told = f"{kill.finished} of {kill.streams} streams went on"
        yield "Engine killed", value, "s silent", told, kill.finished < kill.streams


def _verdict(findings: Sequence[Finding]) -> Table:
    rows = tuple((one.what, one.level.value, one.measured, one.change) for one in findings)
    return Table("What was found", ("", "", "measured", "what to change"), rows, words=True)


def _start(phases: Sequence[Phase]) -> str:
    """The phases side by side, with widths by duration."""
    total_s = sum(phase.seconds for phase in phases) or 1.0
    bars, names = [], []
    for position, phase in enumerate(phases):
        colour = f"var(--c{position % COLOURS})"
        words = f"{number(phase.seconds, 0)} s" if phase.seconds > NARROW_SHARE * total_s else ""
        bars.append(
            f"<div title='{escape(phase.name)}' style='flex:{phase.seconds:.2f} 0 0;background:{colour};"
            f"color:var(--card);text-align:center;overflow:hidden;min-width:1px'>{words}</div>"
        )
        names.append(
            f"<span><i style='background:{colour};height:10px'></i>{escape(phase.name)} "
            f"<b>{phase.seconds:.1f} s</b></span>"
        )
    look = "display:flex;height:28px;line-height:28px;border-radius:6px;overflow:hidden"
    bar = f"<div style='{look}'>{''.join(bars)}</div>"
    legend = f"<div class='legend' style='margin-top:8px'>{''.join(names)}</div>"
    return f"<section><h2>Start: {number(total_s, 0)} s</h2>{bar}{legend}</section>" if phases else ""


def _memory(facts: RehearsalFacts) -> Table:
    memory, said = facts.memory, facts.memory.vllm
    planned = {"weights_bytes": memory.planned_weights, "cache_bytes": memory.planned_cache}
    tokens = {"cache_tokens": memory.planned_tokens}
    rows = []
    for name, words in VLLMS_NAMES.items():
        if name in said:
            plan = planned.get(name)
            count = tokens.get(name)
            was = f"{plan / GB:.1f} GB" if plan is not None else f"{count:,}" if count is not None else ""
            rows.append((words, _with_unit(name, said[name]), was))
    states = {"before": memory.used_before, "started": memory.used_started, "under load": memory.used_loaded}
    states["after the stop"] = memory.used_after
    for when, used in states.items():
        if used is not None and memory.gpu:
            rows.append((f"fullest GPU, {when}", f"{used / GB:.1f} of {memory.gpu / GB:.1f} GB", ""))
    notes = ("vLLM's own figures and the driver's, for one GPU; planned: `python -m serve_app plan`",)
    return Table("Memory and start, as vLLM tells it", ("", "measured", "planned"), tuple(rows), notes if rows else ())


def _with_unit(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / GB:.1f} GB"
    if name.endswith("_tokens"):
        return f"{value:,.0f} tokens"
    return f"{value:,.1f} s" if name.endswith("_s") else f"{value:,.2f}"
