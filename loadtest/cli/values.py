"""Numbers that a flag takes, so that argparse refuses the others by the flag's name before anything starts."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

MOST_WORKERS = 64
"""Beyond this a typing error is more likely than a machine with so many cores for the client."""


LAST_PORT = 65_535


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number within bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"takes a whole number, not {text!r}") from None
        if value < low:
            raise ArgumentTypeError(f"must be at least {low}, not {value}")
        if high is not None and value > high:
            raise ArgumentTypeError(f"must be at most {high}, not {value}")
        return value

    return read


def above_zero(text: str) -> float:
    """A number above 0; infinity is one."""
    value = _number(text)
    if value <= 0:
        raise ArgumentTypeError(f"must be above 0, not {text}")
    return value


def seconds(text: str) -> float:
    """A time that can be waited for."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"takes seconds, not {text}")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"takes a number, not {text!r}") from None
    if math.isnan(value):
        raise ArgumentTypeError("takes a number, not nan")
    return value
