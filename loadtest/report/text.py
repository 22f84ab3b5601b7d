"""The report for a terminal and for Markdown."""

from __future__ import annotations

from loadtest.metrics.summary import Summary
from loadtest.report.table import Table, counted, widths
from loadtest.report.tables import tables, warnings


def title(summary: Summary) -> str:
    """One line that says what was run against what."""
    about = summary.about
    load = f"{about.max_concurrency} at a time" if about.max_concurrency else f"{about.request_rate:g} requests/s"
    name = f"{about.label}: {about.model}" if about.label else about.model
    return f"{name} at {about.url}, {counted(len(summary.finished.run.records), 'request')}, {load}"


def as_text(summary: Summary) -> str:
    """For the terminal."""
    parts = [title(summary), *(f"! {warning}" for warning in warnings(summary)), ""]
    parts += [text_table(table) for table in tables(summary)]
    return "\n".join(parts)


def text_table(table: Table) -> str:
    """One table for the terminal."""
    sizes = widths(table)

    def line(cells: tuple[str, ...]) -> str:
        rest = (
            cell.ljust(size) if table.words else cell.rjust(size)
            for cell, size in zip(cells[1:], sizes[1:], strict=True)
        )
        return "  ".join(["  " + cells[0].ljust(sizes[0]), *rest]).rstrip()

    out = [table.title]
    if any(table.head):
        out.append(line(table.head))
    out += [line(row) for row in table.rows]
    out += [f"  {note}" for note in table.notes]
    return "\n".join(out) + "\n"


def as_markdown(summary: Summary) -> str:
    """For a pull request or a wiki."""
    parts = [f"# Load test: {title(summary)}", ""]
    parts += [f"> **Note:** {warning}\n" for warning in warnings(summary)]
    for table in tables(summary):
        parts.append(markdown_table(table))
    return "\n".join(parts)


def markdown_table(table: Table) -> str:
    """One table as Markdown."""
    parts = [
        f"## {table.title}",
        "",
        _markdown_row(table.head or ("",)),
        _markdown_rule(len(table.head), words=table.words),
    ]
    parts += [_markdown_row(row) for row in table.rows]
    parts += ["", *(f"- {note}" for note in table.notes), ""]
    return "\n".join(parts)


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _markdown_rule(columns: int, *, words: bool) -> str:
    return "| " + " | ".join(["---", *(["---" if words else "---:"] * (columns - 1))]) + " |"
