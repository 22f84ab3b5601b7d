"""`python -m tests.coverage.report`: how much of each package the last `make test` ran where it measures, and whether
that is enough.

With `--lines` it prints the lines that did not run, by file, and writes them as HTML; no floor is checked then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coverage import Coverage
from coverage.exceptions import NoSource

ROOT = Path(__file__).parents[2]
HTML = ROOT / "build" / "coverage" / "html"

FLOORS: Final = {"serve_app": 76.0, "chaos": 82.0, "loadtest": 97.0, "models": None, "bench": None}
"""Percent of a package's lines that the quick tests and those over HTTP run.

Real engines and Ray run most of the rest of `serve_app` and `chaos`, and are not measured: the tracer takes half
as much CPU again in each of their processes. `models` trains and `bench` measures: what they are for takes hours or a
quiet machine, so no test runs all of it.
"""

NAMED_FILES: Final = 10
"""Of a package below its floor. The rest seldom holds enough lines to lift it."""


@dataclass(frozen=True)
class FileLines:
    """What was measured of a file; `ranges` names the missing lines (`3-5, 9`)."""

    name: str
    total: int
    missing: int
    ranges: str = ""


@dataclass(frozen=True)
class Package:
    """The sum of a package's files."""

    name: str
    files: tuple[FileLines, ...]
    floor: float | None = None

    @property
    def total(self) -> int:
        return sum(file.total for file in self.files)

    @property
    def missing(self) -> int:
        return sum(file.missing for file in self.files)

    @property
    def percent(self) -> float:
        """Nothing to run counts as nothing run: a package that was not measured must not pass."""
        return 100 * (1 - self.missing / self.total) if self.total else 0.0

    @property
    def is_low(self) -> bool:
        return self.floor is not None and self.percent < self.floor


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
    if list((ROOT / "build" / "coverage").glob("data.*")):
        coverage.combine()
        coverage.save()
    coverage.load()
    packages = by_package(list(measured(coverage)))
    if not any(package.total for package in packages):
        print("error: nothing was measured yet: `make test` does", file=sys.stderr)
        return 1
    print("\n".join(table(packages)))
    if "--lines" in arguments:
        print("\n".join(lines(packages)))
        coverage.html_report(directory=str(HTML))
        print(f"\nwith the source: {HTML.relative_to(ROOT)}/index.html")
        return 0
    for line in complaints(packages):
        print(line, file=sys.stderr)
    return int(any(package.is_low for package in packages))


def measured(coverage: Coverage) -> Iterator[FileLines]:
    """Every file of the data that is still there."""
    for file in sorted(coverage.get_data().measured_files()):
        try:
            _, statements, _, missing, ranges = coverage.analysis2(file)
        except NoSource:  # moved since
            continue
        yield FileLines(Path(file).relative_to(ROOT).as_posix(), len(statements), len(missing), ranges)


def by_package(files: Sequence[FileLines]) -> list[Package]:
    """The packages that have a line in `FLOORS`, in its order."""
    return [
        Package(name, tuple(file for file in files if file.name.startswith(f"{name}/")), floor)
        for name, floor in FLOORS.items()
    ]


def table(packages: Sequence[Package]) -> Iterator[str]:
    """A line for each package."""
    yield f"{'lines that ran':<16}{'lines':>8}{'missing':>9}{'ran':>9}{'floor':>8}"
    for one in packages:
        floor = f"{one.floor:.0f} %" if one.floor is not None else "-"
        yield f"{one.name:<16}{one.total:>8}{one.missing:>9}{one.percent:>7.1f} %{floor:>8}"


def complaints(packages: Sequence[Package]) -> Iterator[str]:
    """What to look at, for each package below its floor."""
    for one in packages:
        if one.is_low:
            yield f"error: {one.percent:.1f} % of {one.name} ran; the floor is {one.floor:.0f} %. Missing most:"
            yield from (f"  {file.missing:>5}  {file.name}" for file in most_missing(one)[:NAMED_FILES])
            yield "`make coverage` prints the lines"


def lines(packages: Sequence[Package]) -> Iterator[str]:
    """The missing lines of each file, those of the files with most of them first."""
    for one in packages:
        yield f"\n{one.name}"
        yield from (f"  {file.missing:>5} of {file.total:>4}  {file.name}: {file.ranges}" for file in most_missing(one))


def most_missing(package: Package) -> list[FileLines]:
    """The files that have missing lines."""
    return sorted((file for file in package.files if file.missing), key=lambda file: (-file.missing, file.name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
