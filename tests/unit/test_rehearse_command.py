"""`python -m serve_app rehearse`, over a process that only says what a start says: its report and what is left."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serve_app.__main__ import main

START = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit())  # a shell may let what it starts ignore it
print("Checks before anything starts:\\n\\nStarting (a new local Ray); log\\n", flush=True)
print("   1.0 s  engine   loading vLLM (0 s)", flush=True)
if sys.argv[1] == "fails":
    sys.exit("FAILED: out of memory")
print("   3.0 s  answers\\nServing\\n  Ray dashboard  http://127.0.0.1:8265   (asks)\\n", flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests' Ray may run on this machine."""
    monkeypatch.setattr("serve_app.config.machine.running_ray", lambda: None)


def rehearse(out: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the figures of a rehearsal whose service is `START`."""
    monkeypatch.setattr("serve_app.rehearse.command.serve_command", lambda _: [sys.executable, "-c", START, start])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    status = main(["rehearse", "--profile", "cpu-demo", "--out", str(out), "--port", str(port), "--load-s", "1"])
    assert (out / "rehearsal.html").is_file()
    found: dict[str, Any] = json.loads((out / "rehearsal.json").read_text(encoding="utf-8"))
    return status, found


def test_a_start_that_fails_is_reported_and_nothing_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = rehearse(tmp_path, monkeypatch, "fails")
    assert (status, found["ready"]) == (1, False)
    assert "out of memory" in found["facts"]["start_error"]
    assert found["facts"]["requests"] == []
    assert not (tmp_path / "model").exists()
    assert found["verdict"] in capsys.readouterr().out


def test_a_service_that_answers_nobody_is_asked_loaded_and_struck_and_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run_tool(arguments: Sequence[str], _limit_s: float, _say: object) -> tuple[int, str]:
        ran.append(arguments[0])
        return 1, "nobody answers"

    monkeypatch.setattr("serve_app.rehearse.measure.run_tool", run_tool)
    status, found = rehearse(tmp_path, monkeypatch, "works")
    assert status == 1
    assert ran == ["loadtest", "chaos"]
    facts = found["facts"]
    assert facts["answered"]
    assert [request["ok"] for request in facts["requests"]] == [False] * 3
    assert "nobody answers" in facts["load_error"]
    assert "nobody answers" in facts["kill"]["problem"]


def test_a_rehearsal_that_is_interrupted_reports_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve_app.rehearse.measure.three_requests", interrupt)
    status, found = rehearse(tmp_path, monkeypatch, "works")
    assert status == 1
    assert found["facts"]["interrupted"]
    assert found["facts"]["stop_s"] is not None
    assert not (tmp_path / "model").exists()
