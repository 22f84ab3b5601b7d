"""A fake engine with vLLM's metrics, by vLLM's names and labels: dashboards and alerts can be tried without a model.

What `docs/metrics.md` lists of vLLM's and a fake engine can know is here; `tests/unit/test_gauges.py` compares the
names with vLLM's. With `tokens_per_step` N it drafts N - 1 tokens for each sequence and step, and those that it gives
beyond the first are accepted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.util import metrics

from serve_app.engine.contract import EngineStats, StepSink
from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.protocol.messages import AttemptRequest, TokenDelta

FLUSH_S = 0.5
"""As vLLM's are set (`engine/vllm_metrics.py`)."""

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
PER_POSITION = "spec_decode_num_accepted_tokens_per_pos"
COUNTERS = (
    "prompt_tokens",
    "generation_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
)
LABELS = ("model_name", "engine", "ReplicaId")


class MeteredFakeEngine(FakeEngine):
    """`FakeEngine` that exports what vLLM's stat logger would. `clock` gives seconds."""

    def __init__(
        self,
        config: FakeEngineConfig,
        sink: StepSink,
        replica_id: str = "",
        wall_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config, self._counting(sink))
        self._tags = {"model_name": "fake", "engine": "0", "ReplicaId": replica_id}
        self._wall_s = wall_s
        self._flushed_s = 0.0
        self._drafted = config.tokens_per_step - 1
        self._prompts: dict[str, int] = {}
        self._sums: Counter[str] = Counter()
        self._accepted = [0] * self._drafted
        self._gauges = {name: metrics.Gauge(f"vllm_{name}", tag_keys=LABELS) for name in GAUGES}
        self._counters = {name: metrics.Counter(f"vllm_{name}", tag_keys=LABELS) for name in COUNTERS}
        self._per_position = metrics.Counter(f"vllm_{PER_POSITION}", tag_keys=(*LABELS, "position"))

    async def run(self, attempt: AttemptRequest) -> None:
        """See `contract.Engine`."""
        self._prompts[attempt.attempt_id] = attempt.spec.prompt_tokens
        try:
            await super().run(attempt)
        finally:
            self._prompts.pop(attempt.attempt_id, None)

    def stats(self) -> EngineStats:
        """See `contract.Engine`. A heartbeat asks for it, so it is also when the metrics are set."""
        stats = super().stats()
        if self._wall_s() - self._flushed_s >= FLUSH_S:
            self._flush(stats)
        return stats

    def _counting(self, sink: StepSink) -> StepSink:
        def counted(deltas: Sequence[TokenDelta]) -> None:
            for delta in deltas:
                self._count(delta)
            sink(deltas)

        return counted

    def _count(self, delta: TokenDelta) -> None:
        if delta.cached_tokens is not None:
            prompt = self._prompts.get(delta.attempt_id, 0)
            self._sums.update(prompt_tokens=prompt, prefix_cache_queries=prompt, prefix_cache_hits=delta.cached_tokens)
        self._sums["generation_tokens"] += len(delta.token_ids)
        if self._drafted and delta.token_ids:
            accepted = len(delta.token_ids) - 1
            self._sums.update(
                spec_decode_num_drafts=1,
                spec_decode_num_draft_tokens=self._drafted,
                spec_decode_num_accepted_tokens=accepted,
            )
            for position in range(accepted):
                self._accepted[position] += 1

    def _flush(self, stats: EngineStats) -> None:
        self._flushed_s = self._wall_s()
        waiting = stats.unfinished - stats.running
        for name, value in zip(GAUGES, (stats.running, waiting, stats.kv_usage_ratio), strict=True):
            self._gauges[name].set(value, tags=self._tags)
        for name, counter in self._counters.items():
            _add(counter, self._sums[name], self._tags)
        for position, count in enumerate(self._accepted):
            _add(self._per_position, count, {**self._tags, "position": str(position)})
        self._sums.clear()
        self._accepted = [0] * self._drafted


def _add(counter: Any, count: int, tags: dict[str, str]) -> None:
    if count:
        counter.inc(count, tags=tags)


def serve_replica_id() -> str:
    """The id by which vLLM labels its metrics; empty outside Serve."""
    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except serve.exceptions.RayServeException:
        return ""
