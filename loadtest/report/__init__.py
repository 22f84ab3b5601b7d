"""Writers of results: terminal, Markdown, CSV, JSON and one self-contained HTML page, all from `Figures`."""
