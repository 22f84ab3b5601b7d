"""How a check before the start ends, and how that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CheckStatus(StrEnum):
    """How a check ended. Only `FAIL` keeps a start from going on."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """One finding. `advice` is what to do, for every status but `OK`."""

    status: CheckStatus
    name: str
    message: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"  {self.status:<5} {self.name:<12} {self.message}"
        return f"{line}\n{'':>20}-> {self.advice}" if self.advice else line


def passed(name: str, message: str) -> Check:
    """A check without a finding."""
    return Check(CheckStatus.OK, name, message)


def failed(name: str, message: str, advice: str) -> Check:
    """A check that must keep the start from going on."""
    return Check(CheckStatus.FAIL, name, message, advice)
