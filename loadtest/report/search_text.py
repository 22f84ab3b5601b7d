"""A search's steps and outcome, for the terminal and for files."""

from __future__ import annotations

from collections.abc import Mapping

from loadtest.data.prompt import Json
from loadtest.metrics.load_search import SearchResult, SearchStep
from loadtest.report.files import plain
from loadtest.report.table import number

WIDTH = 32


def step_line(step: SearchStep, what: str) -> str:
    """One line while the search goes on."""
    vllm_metrics = step.vllm_metrics
    unit = "at a time" if what == "concurrency" else "per second"
    verdict = "holds" if step.holds else "over-saturated" if step.saturated else "misses"
    missed = ", ".join(f"{v.bound.text} is {number(v.value)}" for v in step.verdicts if not v.met)
    return (
        f"{step.load:>8g} {unit}: {number(vllm_metrics.output_throughput)} tok/s, TTFT P99 "
        f"{number(vllm_metrics.ttft.percentiles[99.0])} ms, TPOT P99 {number(vllm_metrics.tpot.percentiles[99.0])} ms, "
        f"{vllm_metrics.failed} failed: {verdict}" + (f" ({missed})" if missed and not step.holds else "")
    )


def found_text(found: SearchResult, what: str) -> str:
    """The answer, and the curve that shows why."""
    unit = "at a time" if what == "concurrency" else "per second"
    top = max((step.vllm_metrics.output_throughput for step in found.steps), default=0.0) or 1.0
    lines = ["", f"output over load (requests {unit})"]
    for step in found.steps:
        bar = "#" * max(1, round(step.vllm_metrics.output_throughput / top * WIDTH))
        mark = "  <- knee" if step is found.knee else ""
        holds = "holds " if step.holds else "misses"
        per_user = 1000 / step.vllm_metrics.tpot.mean if step.vllm_metrics.tpot.mean else 0.0
        lines.append(
            f"  {step.load:>8g}  {holds}  {bar:<{WIDTH}} {number(step.vllm_metrics.output_throughput)} tok/s, "
            f"{number(per_user)} per user{mark}"
        )
    if found.best is None:
        lines.append(
            f"no load holds, not even {_requests(found.steps[0])} {unit}" if found.steps else "nothing was tried"
        )
    else:
        more = ", and that is the most that was asked for: raise --to" if found.exhausted else ""
        more = ", as far as the search came: it was interrupted" if found.interrupted else more
        lines.append(f"highest load that holds: {_requests(found.best)} {unit}{more}")
    return "\n".join(lines)


def _requests(step: SearchStep) -> str:
    return f"{step.load:g} request{'' if step.load == 1 else 's'}"


def found_json(found: SearchResult, what: str) -> Mapping[str, Json]:
    """For files."""
    return {
        "what": what,
        "best": found.best.load if found.best else None,
        "knee": found.knee.load if found.knee else None,
        "exhausted": found.exhausted,
        "interrupted": found.interrupted,
        "steps": [
            {
                "load": step.load,
                "holds": step.holds,
                "saturated": step.saturated,
                "completed": step.vllm_metrics.completed,
                "failed": step.vllm_metrics.failed,
                "output_throughput": step.vllm_metrics.output_throughput,
                "mean_tpot_ms": step.vllm_metrics.tpot.mean,
                "p99_ttft_ms": step.vllm_metrics.ttft.percentiles[99.0],
                "p99_tpot_ms": step.vllm_metrics.tpot.percentiles[99.0],
                "objectives": {v.bound.text: plain(v.value) for v in step.verdicts},
            }
            for step in found.steps
        ],
    }
