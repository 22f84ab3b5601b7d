"""How much of the code the tests run: the report of `make test`, and what killed processes leave of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from coverage import Coverage, CoverageData

from tests.coverage import report, saves
from tests.coverage.report import FileLines

ROOT = Path(__file__).parents[2]
PROGRAM = "def runs():\n    return 1\n\nruns()\nprint('ran', flush=True)\ninput()\nprint('never')\n"


def packages(**missing: int) -> list[report.Package]:
    """Each of a hundred lines in one file."""
    return report.by_package([FileLines(f"{name}/a.py", 100, count, "7-9") for name, count in missing.items()])


def test_a_package_is_low_below_its_floor_only() -> None:
    floors = {name: int(floor) for name, floor in report.FLOORS.items() if floor is not None}
    missing = {"serve_app": 100 - floors["serve_app"], "chaos": 101 - floors["chaos"], "models": 99}
    low = {one.name: one.is_low for one in packages(**missing)}
    assert low == {"serve_app": False, "chaos": True, "loadtest": True, "models": False, "bench": False}


def test_the_report_names_the_files_that_keep_a_package_low() -> None:
    files = [FileLines("chaos/few.py", 10, 1), FileLines("chaos/many.py", 10, 9), FileLines("chaos/all_ran.py", 5, 0)]
    told = list(report.complaints(report.by_package([*files, FileLines("loadtest/a.py", 9, 0)])[1:3]))
    assert told[0].startswith(f"error: 60.0 % of chaos ran; the floor is {report.FLOORS['chaos']:.0f} %")
    assert [line.split() for line in told[1:-1]] == [["9", "chaos/many.py"], ["1", "chaos/few.py"]]


def test_the_table_has_a_line_for_each_package_and_the_lines_are_named_by_file() -> None:
    measured = packages(serve_app=5, chaos=0, loadtest=0)
    rows = [line.split() for line in report.table(measured)]
    assert rows[1] == ["serve_app", "100", "5", "95.0", "%", f"{report.FLOORS['serve_app']:.0f}", "%"]
    assert [row[0] for row in rows[1:]] == list(report.FLOORS)
    assert "      5 of  100  serve_app/a.py: 7-9" in list(report.lines(measured))


def test_what_a_killed_process_ran_is_kept(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    settings = Coverage(config_file=str(ROOT / "pyproject.toml")).config
    settings.data_file, settings.source_dirs = str(tmp_path / "data"), [str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COVERAGE_PROCESS_CONFIG": settings.serialize()}
    with subprocess.Popen(
        [sys.executable, str(program)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ran\n"
        try:
            assert until_saved(process, tmp_path, program, line=6) == {1, 2, 4, 5, 6}
        finally:
            process.kill()


def until_saved(process: subprocess.Popen[bytes], folder: Path, program: Path, line: int) -> set[int]:
    """The lines in the process' file, once this one is among them."""
    deadline = time.monotonic() + 30 * saves.SAVE_S
    while time.monotonic() < deadline:
        for file in folder.glob("data.*"):
            data = CoverageData(str(file))
            data.read()
            if line in (found := data.lines(str(program)) or []):
                return set(found)
        try:
            process.wait(0.2)  # ends early where there is nothing to wait for any more
        except subprocess.TimeoutExpired:
            continue
    return set()
