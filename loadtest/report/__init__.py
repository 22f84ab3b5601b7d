"""Reports: terminal, Markdown, CSV, JSON and one self-contained HTML page, all from a `Summary`."""
