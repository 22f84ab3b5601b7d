"""Reads engine metrics from Prometheus pages, under vLLM's own names and under the names Ray gives them.

vLLM exports `vllm:kv_cache_usage_perc`; through Ray the same metric is `ray_vllm_kv_cache_usage_perc`. Counters are
read under their `_total` name only, because Ray can be configured to export each of them twice, once without the
suffix.

Each wanted line is parsed by itself. `prometheus_client` takes 0.35 s for a page of 5,000 lines and gives up at the
first malformed one. Skipping unwanted lines first takes some 30 ms, and a malformed line costs only its own sample. It
also makes Ray's repeated HELP and TYPE lines harmless.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Series = tuple[str, str, frozenset[tuple[str, str]]]
"""Server, metric and labels: the identity of a counter."""


def _vllm_names(names: Mapping[str, str]) -> dict[str, str]:
    return {prefix + name: field for name, field in names.items() for prefix in ("vllm:", "ray_vllm_")}


SUMS = _vllm_names({"num_requests_waiting": "waiting", "num_requests_running": "running"}) | {
    "ray_serve_deployment_queued_queries": "queued_in_serve"
}
"""Gauges that are summed over all engines."""
MEANS = _vllm_names({"kv_cache_usage_perc": "kv_usage"})
"""Gauges that are averaged over all engines."""
COUNTERS = _vllm_names(
    {
        "spec_decode_num_drafts_total": "drafts",
        "spec_decode_num_draft_tokens_total": "draft_tokens",
        "spec_decode_num_accepted_tokens_total": "accepted",
        "time_to_first_token_seconds_sum": "ttft_sum_s",
        "time_to_first_token_seconds_count": "ttft_count",
        "prefix_cache_hits_total": "prefix_hits",
        "prefix_cache_queries_total": "prefix_queries",
    }
) | {
    "ray_step_time_to_first_token_seconds_sum": "fleet_ttft_sum_s",
    "ray_step_time_to_first_token_seconds_count": "fleet_ttft_count",
}
"""`ray_step_*` comes from this project's ingress (docs/metrics.md): TTFT as the ingress sees it, routing included."""
PROCESSING = "ray_serve_replica_processing_queries"
INGRESS_DEPLOYMENT = "ingress"
"""Requests that this project's ingress holds and no engine runs are waiting: for capacity, or for a lost replica."""
WANTED = frozenset({*SUMS, *MEANS, *COUNTERS, PROCESSING})


@dataclass(frozen=True)
class MetricValues:
    """Fleet metrics at one moment: gauges summed or averaged, counters as increases since the first page.

    A metric that no page has is absent from `values`.
    """

    values: Mapping[str, float]

    def get(self, name: str) -> float | None:
        """A value; None where no page had it."""
        return self.values.get(name)


@dataclass
class MetricsReader:
    """Reads the same pages repeatedly and accumulates the increases of counters, series by series.

    A replica that dies takes its counters with it and its successor starts at zero. The sum over the current page would
    drop, and what the dead replica had counted would be lost.
    """

    _last_values: dict[Series, float] = field(default_factory=dict)
    _increases: dict[str, float] = field(default_factory=dict)
    _known_servers: set[str] = field(default_factory=set)
    """Servers that have returned a page before."""

    def update(self, pages: Mapping[str, str]) -> MetricValues:
        """Read one round of pages, keyed by server."""
        sums: dict[str, float] = {}
        averaged: dict[str, list[float]] = {}
        for server, page in pages.items():
            for sample in wanted_samples(page):
                name, value = sample.name, sample.value
                if name in COUNTERS:
                    self._count(server, sample, COUNTERS[name])
                elif name in SUMS:
                    sums[SUMS[name]] = sums.get(SUMS[name], 0.0) + value
                elif name in MEANS:
                    averaged.setdefault(MEANS[name], []).append(value)
                elif sample.labels.get("deployment") == INGRESS_DEPLOYMENT:
                    sums["in_ingress"] = sums.get("in_ingress", 0.0) + value
        self._known_servers |= {server for server, page in pages.items() if page}
        means = {name: sum(values) / len(values) for name, values in averaged.items()}
        return MetricValues({**self._increases, **sums, **means})

    def _count(self, server: str, sample: Sample, name: str) -> None:
        series = (server, sample.name, frozenset(sample.labels.items()))
        # A new series on a known server started at zero during the run. On a server's first page it may be older.
        before = self._last_values.get(series, 0.0 if server in self._known_servers else sample.value)
        restarted = sample.value < before
        self._last_values[series] = sample.value
        self._increases[name] = self._increases.get(name, 0.0) + sample.value - (0.0 if restarted else before)


def wanted_samples(page: str) -> Iterator[Sample]:
    """The samples that the fleet view needs; malformed lines and NaN are skipped."""
    for line in page.splitlines():
        if line.partition("{")[0].partition(" ")[0] not in WANTED:
            continue
        try:
            samples = [sample for family in text_string_to_metric_families(line) for sample in family.samples]
        except ValueError:
            continue
        yield from (sample for sample in samples if not math.isnan(sample.value))
