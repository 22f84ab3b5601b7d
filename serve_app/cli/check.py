"""The result of a check before the start, and its output."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CheckStatus(StrEnum):
    """The result of a check. Only `FAIL` stops a start."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """One check's result. `advice` says what to do, for every status but `OK`."""

    status: CheckStatus
    name: str
    message: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"  {self.status:<5} {self.name:<12} {self.message}"
        return f"{line}\n{'':>20}-> {self.advice}" if self.advice else line


def passed(name: str, message: str) -> Check:
    """A check that found nothing."""
    return Check(CheckStatus.OK, name, message)


def failed(name: str, message: str, advice: str) -> Check:
    """A check that stops the start."""
    return Check(CheckStatus.FAIL, name, message, advice)
