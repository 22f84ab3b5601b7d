"""`loadtest compare`: compares result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadtest.errors import UsageError
from loadtest.metrics.compare import comparison_notes, comparison_rows
from loadtest.metrics.result_files import load_result
from loadtest.report.files import write_text
from loadtest.report.table import Table, markdown_table, text_table


async def compare(files: Sequence[str], markdown: str | None) -> int:
    """Compare result files with the first one, on the terminal and in a Markdown file if one is named."""
    if len(files) < 2:
        raise UsageError("compare needs two files or more", "Name the base first, then the others")
    results = [load_result(path) for path in files]
    head = ["", results[0].name]
    for other in results[1:]:
        head += [other.name, "ratio", "95 % interval of the ratio"]
    table = Table(
        "Compared with the first", tuple(head), tuple(comparison_rows(results)), tuple(comparison_notes(results))
    )
    print(text_table(table))
    if markdown:
        write_text(Path(markdown), markdown_table(table))
    return 0
