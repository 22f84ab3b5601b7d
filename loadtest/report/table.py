"""A table as rows of text, and its forms for the terminal and for Markdown. The HTML page has its own."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field

import rich.table
from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

INDENT = "  "


@dataclass(frozen=True)
class Table:
    """A titled table. The first column is text, the others are figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default_factory=tuple)
    words: bool = False
    """All columns are text."""


def number(value: float, digits: int = 1) -> str:
    """A number for people: with thousands separators and no false precision."""
    if math.isinf(value):
        return "never" if value > 0 else "-inf"
    if value and abs(value) < 10**-digits:
        return f"{value:.2g}"
    return f"{value:,.{digits}f}"


def counted(amount: int, noun: str) -> str:
    """A number with its noun."""
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")


def text_table(table: Table) -> str:
    """One table for the terminal: aligned, without colour codes, and as wide as its cells need."""
    grid = rich.table.Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(table.head), header_style=""
    )
    for position, cell in enumerate(table.head):
        grid.add_column(_plain(cell), justify="left" if position == 0 or table.words else "right", no_wrap=True)
    for row in table.rows:
        grid.add_row(*(_plain(cell) for cell in row))
    console = Console(file=io.StringIO(), color_system=None, legacy_windows=False)
    # A console of the terminal's width would cut or wrap cells. A pipe has no width, and a terminal wraps by itself.
    console.width = Measurement.get(console, console.options.update(width=10**6), grid).maximum or 1
    with console.capture() as captured:
        console.print(grid)
    lines = [(INDENT + line).rstrip() for line in captured.get().splitlines()]
    return "\n".join([table.title, *lines, *(INDENT + note for note in table.notes)]) + "\n"


def _plain(cell: str) -> Text:
    """A cell without markup and without control characters: the body of a failed response may contain anything."""
    return Text("".join(character if character.isprintable() else " " for character in cell))


def markdown_table(table: Table) -> str:
    """One table as Markdown."""
    rule = ["---", *(["---" if table.words else "---:"] * (len(table.head) - 1))]
    rows = [table.head or ("",), tuple(rule), *table.rows]
    lines = [_markdown_row(row) for row in rows]
    return "\n".join([f"## {table.title}", "", *lines, "", *(f"- {note}" for note in table.notes), ""])


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
