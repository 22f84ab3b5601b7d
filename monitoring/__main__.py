"""`python -m monitoring`: writes `monitoring/dashboards/*.json` from `monitoring/contents.py`; `--check` only
compares."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from monitoring.contents import DASHBOARDS
from monitoring.grafana import to_json

FOLDER = Path(__file__).parent / "dashboards"


def main(argv: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """The exit status: 1 where `--check` finds a file that is not current."""
    parser = argparse.ArgumentParser(prog="python -m monitoring", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which files are not current")
    options = parser.parse_args(argv)
    texts = {folder / f"{one.uid}.json": json.dumps(to_json(one), indent=2) + "\n" for one in DASHBOARDS}
    stale = [file for file, text in texts.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        if options.check:
            sys.stdout.write(f"{file.name} is not current: run `python -m monitoring`\n")
        else:
            folder.mkdir(exist_ok=True)
            file.write_text(texts[file], encoding="utf-8")
            sys.stdout.write(f"wrote {file.name}\n")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
