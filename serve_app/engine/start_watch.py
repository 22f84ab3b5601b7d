"""Who is told how a replica's start goes (`start_board.py`, for one)."""

from __future__ import annotations

from typing import Protocol


class StartWatch(Protocol):
    """`process_s`: how long the replica's process had run when the start began."""

    process_s: float

    def say(self, phase: str) -> None:
        """The start has reached this phase. May be called from another thread; never blocks, never raises."""

    def ready(self) -> None:
        """The start is over."""


class Unwatched:
    """`StartWatch` where nobody watches."""

    process_s = 0.0

    def say(self, phase: str) -> None:
        """See `StartWatch`."""

    def ready(self) -> None:
        """See `StartWatch`."""


UNWATCHED = Unwatched()
