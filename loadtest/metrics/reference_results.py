"""The published benchmark of Step-3.7-Flash: its command as a preset, its results, and whether a run is comparable.

Source: Lambda, "How to deploy Step 3.7 Flash" (lambda.ai/inference-models/stepfun-ai/step-3.7-flash). The command was
`vllm bench serve --backend openai-chat --dataset-name random --random-input-len 8192 --random-output-len 2048
--num-prompts 512 --max-concurrency 32`. The H100 and A100 results were measured in eager mode.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.metrics.extended_metrics import ExtendedMetrics
from loadtest.metrics.vllm_metrics import VllmMetrics

PROMPTS = 512
PRESETS: dict[str, dict[str, object]] = {
    "published-8k-2k": {
        "api": "chat",
        "dataset": "random",
        "input_len": 8192,
        "output_len": 2048,
        "num_prompts": PROMPTS,
        "concurrency": 32,
        "seed": 0,
        "ignore_eos": True,
    }
}
"""Defaults of `--preset`. Flags override them, and the comparison then lists the difference."""
QUICK_WAVES = 3
"""`--quick`: one wave of ramp, two of steady state."""
TOKENS_PER_CHUNK = 2.8
"""ITL / TPOT of the published results: tokens per step with 3 MTP draft tokens."""


@dataclass(frozen=True)
class ReferenceMachine:
    """A column of the published table. Rates in tokens per second, times in ms."""

    name: str
    output_rate: float
    total_rate: float
    per_user_rate: float
    ttft_mean: float
    ttft_p99: float
    tpot_mean: float
    tpot_p99: float
    itl_mean: float
    itl_p99: float


REFERENCE_MACHINES = (
    ReferenceMachine("4x B200", 1597, 7982, 53, 2183, 25629, 18.8, 26.6, 52.7, 182.3),
    ReferenceMachine("8x H100", 1245, 6224, 42, 2995, 35018, 24.0, 33.9, 67.2, 250.3),
    ReferenceMachine("8x A100", 474, 2370, 17, 13646, 99982, 60.1, 84.2, 167.5, 215.7),
)


@dataclass(frozen=True)
class ComparisonRow:
    """One metric: measured, published for each machine, and their ratios."""

    name: str
    unit: str
    ours: float
    published: tuple[float, ...]
    higher_is_better: bool

    @property
    def ratios(self) -> tuple[float, ...]:
        """Measured / published."""
        return tuple(self.ours / theirs if theirs else 0.0 for theirs in self.published)


def comparison_with_published(vllm_metrics: VllmMetrics) -> list[ComparisonRow]:
    """Measured and published metrics, in the order of the published table."""
    per_user = 1000 / vllm_metrics.tpot.mean if vllm_metrics.tpot.mean else 0.0
    ours = [
        ("output tok/s", "tok/s", vllm_metrics.output_throughput, "output_rate", True),
        ("total tok/s", "tok/s", vllm_metrics.total_token_throughput, "total_rate", True),
        ("per-user tok/s", "tok/s", per_user, "per_user_rate", True),
        ("TTFT mean", "ms", vllm_metrics.ttft.mean, "ttft_mean", False),
        ("TTFT P99", "ms", vllm_metrics.ttft.percentiles.get(99.0, 0.0), "ttft_p99", False),
        ("TPOT mean", "ms", vllm_metrics.tpot.mean, "tpot_mean", False),
        ("TPOT P99", "ms", vllm_metrics.tpot.percentiles.get(99.0, 0.0), "tpot_p99", False),
        ("ITL mean", "ms", vllm_metrics.itl.mean, "itl_mean", False),
        ("ITL P99", "ms", vllm_metrics.itl.percentiles.get(99.0, 0.0), "itl_p99", False),
    ]
    return [
        ComparisonRow(
            name, unit, value, tuple(float(getattr(machine, field)) for machine in REFERENCE_MACHINES), better
        )
        for name, unit, value, field, better in ours
    ]


@dataclass(frozen=True)
class BenchmarkSettings:
    """The settings of a run that the comparison depends on."""

    dataset: str
    api: str
    input_len: int
    output_len: int
    num_prompts: int
    concurrency: int | None
    seed: int
    forced_length: bool
    """Answers had to have the full length (ignore_eos)."""
    interrupted: bool


def differences(
    settings: BenchmarkSettings,
    vllm_metrics: VllmMetrics,
    extended_metrics: ExtendedMetrics,
    cached_ratio: float | None,
) -> list[str]:
    """The reasons why the run is not comparable with the published one; empty where it is."""
    wanted = PRESETS["published-8k-2k"]
    reasons = []
    for name in ("api", "dataset", "input_len", "output_len", "num_prompts", "concurrency", "seed"):
        ours = getattr(settings, name)
        if ours != wanted[name]:
            reasons.append(f"{name.replace('_', ' ')} is {ours}, published {wanted[name]}")
    if not settings.forced_length:
        reasons.append("answers were allowed to end early (ignore_eos is off)")
    if settings.interrupted:
        reasons.append("the run was interrupted")
    if vllm_metrics.failed:
        reasons.append(f"{vllm_metrics.failed} requests failed")
    reasons += _measured_differences(vllm_metrics, extended_metrics, cached_ratio)
    return reasons


def _measured_differences(
    vllm_metrics: VllmMetrics, extended_metrics: ExtendedMetrics, cached_ratio: float | None
) -> list[str]:
    reasons = []
    output, prompt = extended_metrics.output_drift, extended_metrics.prompt_drift
    if output is not None and output.mean != output.planned_mean:
        reasons.append(f"answers had {output.mean:.0f} tokens on average, {output.planned_mean:.0f} were requested")
    if prompt is not None and abs(prompt.mean / prompt.planned_mean - 1) > 0.01:
        reasons.append(f"the server counted {prompt.mean:.0f} prompt tokens, {prompt.planned_mean:.0f} were planned")
    if cached_ratio is not None and cached_ratio > 0.01:
        reasons.append(f"{cached_ratio:.0%} of the prompt tokens came from the server's cache")
    if vllm_metrics.completed and abs(extended_metrics.tokens_per_chunk / TOKENS_PER_CHUNK - 1) > 0.1:
        reasons.append(
            f"{extended_metrics.tokens_per_chunk:.2f} tokens per chunk, published about {TOKENS_PER_CHUNK}: "
            "ITL is not comparable, TPOT is"
        )
    return reasons
