"""The few lines of a Prometheus page that the fleet's picture needs, under vLLM's own names and under Ray's.

vLLM writes `vllm:kv_cache_usage_perc`; through Ray the same figure is `ray_vllm_kv_cache_usage_perc`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SUMS = {
    "num_requests_waiting": "waiting",
    "num_requests_running": "running",
    "spec_decode_num_drafts": "drafts",
    "spec_decode_num_draft_tokens": "draft_tokens",
    "spec_decode_num_accepted_tokens": "accepted",
    "time_to_first_token_seconds_sum": "ttft_sum_s",
    "time_to_first_token_seconds_count": "ttft_count",
    "prefix_cache_hits": "prefix_hits",
    "prefix_cache_queries": "prefix_queries",
}
"""Metrics of vLLM that add up over engines."""
SERVE_SUMS = {"ray_serve_deployment_queued_queries": "queued_in_serve"}
MEANS = {"kv_cache_usage_perc": "kv_usage"}


@dataclass(frozen=True)
class Gauges:
    """Figures of one moment, summed or averaged over engines. Missing ones are absent from `values`."""

    values: Mapping[str, float]

    def get(self, name: str) -> float | None:
        """A figure, None where no page had it."""
        return self.values.get(name)


def read_pages(pages: Iterable[str]) -> Gauges:
    """Sum and average over all pages. The two histogram parts of Ray come with a `_total`-less name as well."""
    sums: dict[str, float] = {}
    means: dict[str, list[float]] = {}
    for page in pages:
        for line in page.splitlines():
            if line.startswith("#") or ("vllm" not in line and "ray_serve" not in line):
                continue
            name, value = _split(line)
            if value is None:
                continue
            serve = SERVE_SUMS.get(name)
            short = name.removeprefix("ray_").removeprefix("vllm:").removeprefix("vllm_").removesuffix("_total")
            target = serve or (SUMS.get(short) if short != name else None)
            if target is not None:
                sums[target] = sums.get(target, 0.0) + value
            elif short in MEANS and short != name:
                means.setdefault(MEANS[short], []).append(value)
    return Gauges({**sums, **{name: sum(found) / len(found) for name, found in means.items()}})


def _split(line: str) -> tuple[str, float | None]:
    name = line.partition("{")[0].partition(" ")[0]
    tail = line.rpartition("}")[2] if "}" in line else line[len(name) :]
    try:
        return name, float(tail.split()[0])
    except (IndexError, ValueError):
        return name, None
