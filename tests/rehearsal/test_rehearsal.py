"""`python -m serve_app rehearse` as a user runs it, over the demo's shape on the CPU: minutes, so a tier of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.config import machine
from serve_app.config.profile import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def rehearse(out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serve_app", "rehearse", "--profile", "cpu-demo", "--out", str(out), *flags]
    # A shell lets what it runs in the background ignore SIGINT, and its children would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_rehearsal_goes_through_everything_and_leaves_only_its_results(tmp_path: Path) -> None:
    process = rehearse(tmp_path, "--load-s", "10")
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    found = json.loads((tmp_path / "rehearsal.json").read_text(encoding="utf-8"))
    assert found["ready"]
    assert {phase["name"] for phase in found["facts"]["phases"]} >= {"checks", "Ray and Serve", "loading weights"}
    assert [request["kind"] for request in found["facts"]["requests"]] == ["text", "image", "tool"]
    assert found["facts"]["load"]["failed"] == 0
    assert found["facts"]["memory"]["vllm"]["cache_tokens"] > 0
    assert found["facts"]["kill"]["finished"] == found["facts"]["kill"]["streams"]
    assert {file.name for file in tmp_path.iterdir()} >= {"rehearsal.html", "load.html", "kill.json", "service.log"}
    assert not (tmp_path / "model").exists()
    assert not machine.stale_processes()


def test_an_interrupted_rehearsal_takes_everything_down_and_reports_what_it_has(tmp_path: Path) -> None:
    with rehearse(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "loading" in line:
                process.send_signal(signal.SIGINT)
                break
        printed = process.stdout.read()
    assert process.returncode == 1
    assert "INTERRUPTED" in printed
    assert json.loads((tmp_path / "rehearsal.json").read_text(encoding="utf-8"))["facts"]["interrupted"]
    assert not machine.stale_processes()
