"""A table as plain rows, and figures as people read them: what the terminal, Markdown and HTML have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A titled table; the first column is text, the others are figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default_factory=tuple)
    words: bool = False
    """Its cells are sentences, not figures."""


def number(value: float, digits: int = 1) -> str:
    """A figure for people: thousands apart, no false precision."""
    if math.isinf(value):
        return "never" if value > 0 else "-inf"
    if value and abs(value) < 10**-digits:
        return f"{value:.2g}"
    return f"{value:,.{digits}f}"


def counted(amount: int, noun: str) -> str:
    """A number with its noun."""
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")


def widths(table: Table) -> Sequence[int]:
    """Characters each column needs."""
    columns = zip(table.head, *table.rows, strict=True)
    return [max(len(cell) for cell in column) for column in columns]
