"""A refused start ends the `serve run` that it belongs to, and no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serve_app.cli.abort_serve_run import is_serve_run, started_by
from serve_app.config.profile import ROOT

COMMAND = """
import signal, subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[2]])
signal.pause()
"""
"""Like Serve's program: it starts what builds the application, and waits for ever."""

BUILD = "from serve_app.cli import abort_serve_run; print(abort_serve_run.end('port 1 is no port'), flush=True)"


def run(program: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(program), "run", BUILD]
    return subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["/env/bin/python3.11", "/env/bin/serve", "run", "deploy.yaml"], True),
        (["/env/bin/serve", "run", "--address", "local", "deploy.yaml"], True),
        (["/env/bin/serve", "status"], False),
        (["/env/bin/python", "-m", "serve_app", "serve", "--file", "run"], False),
        (["/env/bin/serve"], False),
        ([], False),
    ],
)
def test_only_serves_own_run_is_one(words: list[str], is_one: bool) -> None:  # a parameter of the test
    assert is_serve_run(words) is is_one


def test_it_ends_with_the_reason_as_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "serve"
    program.write_text(COMMAND)
    command = run(program)
    assert command.returncode != 0
    assert "Not started. port 1 is no port" in command.stderr
    assert "make serve" in command.stderr


def test_where_ray_belongs_to_somebody_else_nothing_ends(tmp_path: Path) -> None:
    program = tmp_path / "start"
    program.write_text(COMMAND.replace("signal.pause()", "print('goes on')"))
    command = run(program)
    assert command.returncode == 0
    assert command.stdout.split("\n")[:2] == ["False", "goes on"]


def test_a_process_that_has_gone_is_no_ancestor() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(gone.pid)
    gone.wait()
    assert started_by([process]) is None
