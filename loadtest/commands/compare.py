"""`loadtest compare`: result files side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadtest.errors import UsageError
from loadtest.metrics.compare import comparison_rows, load_result, setting_notes
from loadtest.report.files import write_text
from loadtest.report.table import Table
from loadtest.report.text import markdown_table, text_table


async def compare(files: Sequence[str], markdown: str | None) -> int:
    """Compare result files with the first one, on the terminal and in a file where one is named."""
    results = [load_result(path) for path in files]
    if len(results) < 2:
        raise UsageError("compare needs two files or more")
    head = ["", results[0].name]
    for other in results[1:]:
        head += [other.name, "ratio", "95 % interval of the ratio"]
    table = Table(
        "Compared with the first", tuple(head), tuple(comparison_rows(results)), tuple(setting_notes(results))
    )
    print(text_table(table))
    if markdown:
        write_text(Path(markdown), markdown_table(table))
    return 0
