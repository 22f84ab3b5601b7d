"""What each API key's requests cost at one engine: GPU-seconds, and energy where the GPUs say it.

Both are divided among keys as the engine's time is (`gpu_time.py`). The energy of the time in which the engine had
nothing to do is nobody's, and has a metric of its own, so that all of it is somewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ray.serve import metrics

from serve_app.protocol.key_labels import KeyLabels

REPORTS_PER_READING = 20
"""The energy is read every ten seconds, in a thread: a driver may take milliseconds for each GPU."""


class KeyCosts:
    """Counts what keys cost at an engine on `gpus` GPUs (0: a CPU, which counts as one). `read_energy_j` gives the
    joules that the GPUs of this node have used so far, None where they do not say."""

    def __init__(self, gpus: int, read_energy_j: Callable[[], float | None]) -> None:
        self._gpus = max(gpus, 1)
        self._read_energy_j = read_energy_j
        self._labels = KeyLabels()
        self._reports = 0
        self._told_s: dict[str, float] = {}
        self._unpaid_s: dict[str, float] = {}
        self._energy_j: float | None = None
        self._charged_s = 0.0
        self._reading: asyncio.Future[float | None] | None = None
        self._seconds = metrics.Counter(
            "step_key_gpu_seconds",
            description="Time of engines that had work, times their GPUs (a CPU counts as one), by the key that it "
            "was for; none: without a key.",
            tag_keys=("key",),
        )
        self._joules = metrics.Counter(
            "step_key_energy_joules",
            description="Energy of the GPUs of the replica's first node, by the key that it was for. Only where NVML "
            "tells it.",
            tag_keys=("key",),
        )
        self._idle_joules = metrics.Counter(
            "step_idle_energy_joules", description="The same while the engine had nothing to do."
        )

    def set_totals(self, seconds: Mapping[str, float]) -> None:
        """So much of the engine's time has gone to each key so far."""
        for name, total_s in seconds.items():
            lasted_s = total_s - self._told_s.get(name, 0.0)
            if lasted_s <= 0:
                continue
            self._told_s[name] = total_s
            label = self._labels.label(name)
            self._seconds.inc(lasted_s * self._gpus, tags={"key": label})
            self._unpaid_s[label] = self._unpaid_s.get(label, 0.0) + lasted_s
        self._reports += 1
        if self._reports % REPORTS_PER_READING == 1:
            self._read()

    def _read(self) -> None:
        if self._reading is not None and not self._reading.done():
            return  # a GPU that is gone may never answer: it gets one thread
        loop = asyncio.get_running_loop()
        self._reading = loop.run_in_executor(None, self._read_energy_j)
        self._reading.add_done_callback(
            lambda done: None if done.cancelled() else self.charge(done.result(), loop.time())
        )

    def charge(self, energy_j: float | None, now_s: float) -> None:
        """Divide the energy that was used since the last reading: by time, and idle time is nobody's."""
        before_j, self._energy_j = self._energy_j, energy_j
        since_s, self._charged_s = self._charged_s, now_s
        unpaid_s, self._unpaid_s = self._unpaid_s, {}
        if before_j is None or energy_j is None or energy_j <= before_j:
            return
        joules, busy_s = energy_j - before_j, sum(unpaid_s.values())
        whole_s = max(now_s - since_s, busy_s)
        for label, lasted_s in unpaid_s.items():
            self._joules.inc(joules * lasted_s / whole_s, tags={"key": label})
        if whole_s > busy_s:
            self._idle_joules.inc(joules * (whole_s - busy_s) / whole_s)
