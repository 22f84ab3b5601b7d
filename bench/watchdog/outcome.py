"""The outcome of a case, and the table of all outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

WriteLine = Callable[[str], None]

HEADS = (
    "case",
    "",
    "killed by the watchdog",
    "died otherwise",
    "lost requests",
    "longest silence",
    "first token",
    "found after",
    "note",
)


@dataclass(frozen=True)
class CaseOutcome:
    """What a case has shown. Times in seconds; None if the case does not measure it.

    `kills`: engines that the watchdog killed. `deaths`: other engines that ended. `lost`: failed requests.
    `longest_silence_s`: no client received anything (over HTTP), or the engine finished no step.
    `found_s`: from the fault to the failure of its request; `limit_s`: how long that may take.
    """

    name: str
    kills: int = 0
    deaths: int = 0
    lost: int = 0
    longest_silence_s: float | None = None
    first_token_s: float | None = None
    is_hang: bool = False
    found_s: float | None = None
    limit_s: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether a slow engine survived with all its requests, or a hang was found in time."""
        if self.is_hang:
            return self.found_s is not None and self.limit_s is not None and self.found_s <= self.limit_s
        return not (self.kills or self.deaths or self.lost)

    def cells(self) -> tuple[str, ...]:
        """The outcome as a row of the table."""
        found = _seconds(self.found_s) if self.found_s is not None else ("never" if self.is_hang else "-")
        if self.limit_s is not None:
            found += f" of {self.limit_s:.0f} s"
        figures = (_seconds(self.longest_silence_s), _seconds(self.first_token_s), found)
        result = "ok" if self.holds else self._failure()
        counts = (str(self.kills), str(self.deaths), str(self.lost))
        return (self.name, result, *counts, *figures, self.note.replace("|", "/"))

    def _failure(self) -> str:
        if self.is_hang:
            return "MISSED"
        return "FALSE ALARM" if self.kills else "ENGINE DIED" if self.deaths else "LOST"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def table(outcomes: Sequence[CaseOutcome]) -> str:
    """All outcomes as a table in Markdown."""
    rows = [HEADS, tuple("---" for _ in HEADS), *(outcome.cells() for outcome in outcomes)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
