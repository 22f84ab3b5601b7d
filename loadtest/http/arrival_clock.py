"""When bytes came in, as the kernel tells it, on the clock that everything else is measured with.

Linux stamps each segment as it arrives and gives the last one's time with a read (SO_TIMESTAMPNS). That is wall-clock
time. It differs from the monotonic clock by a constant, since both are steered alike, until somebody sets the clock.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from time import perf_counter_ns, time_ns

import numpy as np

SO_TIMESTAMPNS = 35
"""As on x86, ARM, RISC-V, POWER and s390. Python has no name for it."""
ANCILLARY_BYTES = socket.CMSG_SPACE(16)
STEP_NS = 1_000_000
"""A clock that was set moves further. What is slewed does so for both clocks."""
SURE_NS = 50_000
"""Between the readings of two clocks; if it took longer, something came between."""
Ancillary = list[tuple[int, int, bytes]]
"""What a read says beside the bytes: empty where the kernel tells no time."""
Stamp = bytes | int
"""A time as the kernel writes it, or one of `perf_counter_ns`."""


def stamp_of(ancillary: Ancillary) -> Stamp:
    """When the bytes came, or the time now where that is not known."""
    return ancillary[0][2] if ancillary else perf_counter_ns()


def ask_for_arrivals(sock: socket.socket) -> None:
    """Have the kernel tell when bytes came in; where it cannot, reads say nothing."""
    if sys.platform == "linux" and sys.maxsize > 2**32:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


class ArrivalClock:
    """Turns the kernel's stamps into times of `perf_counter_ns`."""

    def __init__(self) -> None:
        self._ahead_ns = 0
        self.exact = True
        """Whether the last times were all the kernel's. Where nobody asked before, it begins to tell some ms late."""
        while not self.set():
            pass

    def _look(self) -> int | None:
        """How far the wall clock is ahead of the monotonic one."""
        before = perf_counter_ns()
        wall = time_ns()
        after = perf_counter_ns()
        return wall - (before + after) // 2 if after - before < SURE_NS else None

    def stepped(self) -> bool:
        """Whether somebody set the clock: what was stamped before has to be turned before `set`."""
        ahead_ns = self._look()
        return ahead_ns is not None and abs(ahead_ns - self._ahead_ns) > STEP_NS

    def set(self) -> bool:
        """Take the clocks as they are now; False where that could not be told."""
        ahead_ns = self._look()
        if ahead_ns is None:
            return False
        self._ahead_ns = ahead_ns
        return True

    def times(self, stamps: list[Stamp]) -> list[int]:
        """Monotonic times, none of them in the future."""
        try:
            whole = b"".join(stamps)  # type: ignore[arg-type]  # so it is nearly always, and as fast as can be
        except TypeError:
            times = [stamp if isinstance(stamp, int) else self.times([stamp])[0] for stamp in stamps]
            self.exact = False
            return times
        self.exact = True
        ancillary = np.frombuffer(whole, dtype=np.int64).reshape(-1, 2)
        arrived = ancillary[:, 0] * 1_000_000_000 + ancillary[:, 1] - self._ahead_ns
        told_ns: list[int] = np.minimum(arrived, perf_counter_ns()).tolist()
        return told_ns
