"""What was used in the last minute, in slices of a second. Pure.

A token bucket that may fill up to a minute's limit lets twice the limit through in the minute after it was full. A
window does not: whatever is used leaves it 60 to 61 seconds later, so no minute, wherever it begins, has more than the
limit; and still a client may use all of it at once.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 60


class UsageWindow:
    """The units used in each second of the last minute, by one clock that never goes back."""

    def __init__(self) -> None:
        self._slices: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, units: int, now_s: float) -> None:
        """So many units are used now."""
        self.used(now_s)  # forgets what has left: nobody may ever ask
        second = math.floor(now_s)
        self._total += units
        if self._slices and self._slices[-1][0] == second:
            units += self._slices.pop()[1]
        self._slices.append((second, units))

    def used(self, now_s: float) -> int:
        """What was used in the last minute."""
        while self._slices and _leaves_s(self._slices[0][0]) <= now_s:
            self._total -= self._slices.popleft()[1]
        return self._total

    def frees_in_s(self, units: int, now_s: float) -> float | None:
        """When so many units will have left the window; None where it does not hold so many."""
        left = units
        for second, used in self._slices:
            left -= used
            if left <= 0:
                return max(0.0, _leaves_s(second) - now_s)
        return None

    def empty_in_s(self, now_s: float) -> float:
        """When all of it will have left the window."""
        return max(0.0, _leaves_s(self._slices[-1][0]) - now_s) if self._slices else 0.0


def _leaves_s(second: int) -> int:
    return second + WINDOW_S + 1
