"""vLLM's metrics in Ray's, set twice a second and not at every step.

vLLM sets some fifteen gauges and counters after each engine step. In `prometheus_client` that costs next to nothing; in
Ray each is a call into its core, and together they were the replica's largest expense: 12 us for every output token on
the demo. Metrics are read every few seconds. Histograms are passed on one by one: each observation counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vllm.v1.metrics.ray_wrappers import (
    RayCounterWrapper,
    RayGaugeWrapper,
    RayPrometheusStatLogger,
    RaySpecDecodingProm,
)

FLUSH_S = 0.5
"""How late a gauge or a counter may be."""


def _soon(flush: Callable[[], None]) -> None:
    """Call `flush` in `FLUSH_S`; at once where no event loop runs, as while an engine is being built."""
    try:
        asyncio.get_running_loop().call_later(FLUSH_S, flush)
    except RuntimeError:
        flush()


class BufferedGauge(RayGaugeWrapper):  # type: ignore[misc]  # vLLM is not read by mypy
    """A gauge whose latest value is set with a delay."""

    _value: float | None = None

    def set(self, value: float) -> None:
        """See `prometheus_client.Gauge.set`."""
        waits, self._value = self._value is not None, value
        if not waits:
            _soon(self.flush)

    def flush(self) -> None:
        """Pass on the latest value."""
        value, self._value = self._value, None
        super().set(value)


class BufferedCounter(RayCounterWrapper):  # type: ignore[misc]  # vLLM is not read by mypy
    """A counter whose increments are summed before they are set. vLLM asks for its labels at every step: those are
    cached."""

    _sum: float = 0.0

    def __init__(self, name: str, documentation: str = "", labelnames: list[str] | None = None) -> None:
        super().__init__(name, documentation, labelnames)
        self._labelled: dict[tuple[object, ...], BufferedCounter] = {}

    def labels(self, *labels: object, **labelskwargs: object) -> BufferedCounter:
        """See `prometheus_client.Counter.labels`."""
        key = (*labels, *sorted(labelskwargs.items()))
        if key not in self._labelled:
            self._labelled[key] = super().labels(*labels, **labelskwargs)
        return self._labelled[key]

    def inc(self, value: float = 1.0) -> None:
        """See `prometheus_client.Counter.inc`."""
        waits = self._sum > 0
        self._sum += value
        if self._sum > 0 and not waits:
            _soon(self.flush)

    def flush(self) -> None:
        """Pass on the sum."""
        value, self._sum = self._sum, 0.0
        super().inc(value)


class BufferedSpecDecodingProm(RaySpecDecodingProm):  # type: ignore[misc]  # vLLM is not read by mypy
    """Drafted and accepted tokens, added up first."""

    _counter_cls = BufferedCounter


class BufferedStatLogger(RayPrometheusStatLogger):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's Ray stat logger over the two above."""

    _gauge_cls = BufferedGauge
    _counter_cls = BufferedCounter
    _spec_decoding_cls = BufferedSpecDecodingProm
