"""The few lines of a Prometheus page that the fleet's picture needs, under vLLM's own names and under Ray's.

vLLM writes `vllm:kv_cache_usage_perc`; through Ray the same figure is `ray_vllm_kv_cache_usage_perc`. Counters are read
under their `_total` name only: Ray can be told to write each twice, once without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_SUMS = {"num_requests_waiting": "waiting", "num_requests_running": "running"}
_MEANS = {"kv_cache_usage_perc": "kv_usage"}
_COUNTERS = {
    "spec_decode_num_drafts_total": "drafts",
    "spec_decode_num_draft_tokens_total": "draft_tokens",
    "spec_decode_num_accepted_tokens_total": "accepted",
    "time_to_first_token_seconds_sum": "ttft_sum_s",
    "time_to_first_token_seconds_count": "ttft_count",
    "prefix_cache_hits_total": "prefix_hits",
    "prefix_cache_queries_total": "prefix_queries",
}


def _both(names: Mapping[str, str]) -> dict[str, str]:
    return {prefix + name: ours for name, ours in names.items() for prefix in ("vllm:", "ray_vllm_")}


SUMS = _both(_SUMS) | {"ray_serve_deployment_queued_queries": "queued_in_serve"}
"""Gauges that add up over engines."""
IN_INGRESS = "ray_serve_replica_processing_queries"
INGRESS = 'deployment="ingress"'
"""This project's ingress: what it holds and no engine runs waits there, for room or for a replica that was lost."""
MEANS = _both(_MEANS)
COUNTERS = _both(_COUNTERS) | {
    "ray_step_time_to_first_token_seconds_sum": "fleet_ttft_sum_s",
    "ray_step_time_to_first_token_seconds_count": "fleet_ttft_count",
}
"""`ray_step_*` is this project's ingress (docs/metrics.md): a first token's time inside the fleet, routing included."""


@dataclass(frozen=True)
class MetricValues:
    """Figures of one moment. Gauges are summed or averaged over engines; counters say what came since the first look.

    Missing ones are absent from `values`.
    """

    values: Mapping[str, float]

    def get(self, name: str) -> float | None:
        """A figure, None where no page had it."""
        return self.values.get(name)


@dataclass
class MetricsReader:
    """Reads pages again and again and adds counters up, series by series.

    A replica that dies takes its counters with it and a new one begins at zero: a plain sum over the page would go
    down, and what had been counted would be lost.
    """

    _last: dict[str, float] = field(default_factory=dict)
    _grown: dict[str, float] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    """Servers that gave a page before."""

    def take(self, pages: Mapping[str, str]) -> MetricValues:
        """Take one round of pages in, each under its server's name."""
        sums: dict[str, float] = {}
        means: dict[str, list[float]] = {}
        for server, page in pages.items():
            for line in page.splitlines():
                name = line.partition("{")[0].partition(" ")[0]
                if name in COUNTERS:
                    self._count(server, line, COUNTERS[name])
                elif name in SUMS and (value := _value(line)) is not None:
                    sums[SUMS[name]] = sums.get(SUMS[name], 0.0) + value
                elif name == IN_INGRESS and INGRESS in line and (value := _value(line)) is not None:
                    sums["in_ingress"] = sums.get("in_ingress", 0.0) + value
                elif name in MEANS and (value := _value(line)) is not None:
                    means.setdefault(MEANS[name], []).append(value)
        self._known |= {server for server, page in pages.items() if page}
        averages = {name: sum(found) / len(found) for name, found in means.items()}
        return MetricValues({**self._grown, **sums, **averages})

    def _count(self, server: str, line: str, name: str) -> None:
        value = _value(line)
        if value is None:
            return
        series = f"{server} {line[: line.rindex('}') + 1] if '}' in line else name}"
        # A replica that came later began at zero. What a server's first page says may be older than the run.
        before = self._last.get(series, 0.0 if server in self._known else value)
        self._last[series] = value
        self._grown[name] = self._grown.get(name, 0.0) + (value - before if value >= before else value)


def _value(line: str) -> float | None:
    tail = line.rpartition("}")[2] if "}" in line else line.partition(" ")[2]
    try:
        return float(tail.split()[0])
    except (IndexError, ValueError):
        return None
