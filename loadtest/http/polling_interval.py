"""When an ear looks at its sockets: at every chunk where they are few, by the clock where they are many. Pure."""

from __future__ import annotations

WINDOW_NS = 100_000_000
"""Several steps of an engine, which sends all its streams' tokens at once: shorter, and the pace would flutter."""
BUSY_READS, QUIET_READS = 50, 25
"""Reads in a window, 500 and 250 a second. Fewer, and a wake-up for each is no burden."""
FINEST_S = 0.001
"""The finest step of uvloop's timers."""
COARSEST_S = 0.005
"""How late a response's end may be noticed. Half of it, on average, is lost to a slot of a closed loop."""
POLLS_PER_CHUNK = 4
"""A stream's chunks must not meet in a socket: there, the earlier one's time would be lost."""


class PollingInterval:
    """Whether reads are many, and how often to look then, from how many came of late."""

    def __init__(self, now_ns: int) -> None:
        self.busy = False
        self.ever_busy = False
        self.interval_s = FINEST_S
        self._since_ns = now_ns
        self._reads = 0

    def note(self, reads: int, streams: int, now_ns: int, *, exact: bool) -> None:
        """Count reads of so many running streams. `exact` says that their times do not depend on the pace."""
        self._reads += reads
        if now_ns - self._since_ns < WINDOW_NS:
            return
        # A window may be longer than planned: it ends with the first look after it.
        took_s = (now_ns - self._since_ns) / 1e9
        per_window = self._reads / took_s * WINDOW_NS / 1e9
        gap_s = streams * took_s / self._reads if self._reads else COARSEST_S
        self._since_ns, self._reads = now_ns, 0
        self.busy = per_window >= (QUIET_READS if self.busy else BUSY_READS)
        self.ever_busy = self.ever_busy or self.busy
        self.interval_s = min(COARSEST_S, max(FINEST_S, gap_s / POLLS_PER_CHUNK)) if exact else FINEST_S
