"""`python -m serve_app COMMAND` as a shell sees it: what is printed where, and the exit status."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import yaml

from serve_app.__main__ import main
from serve_app.config.profile import ROOT, profile_names
from serve_app.ingress.auth import line_for

Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests' Ray may run on this machine."""
    monkeypatch.setattr("serve_app.config.machine.running_ray", lambda: None)


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """The repository's deploy.yaml over a fake engine, at a port where nobody answers."""
    document = yaml.safe_load((ROOT / "deploy.yaml").read_text(encoding="utf-8"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        document["http_options"]["port"] = probe.getsockname()[1]
    document["applications"][0]["args"] = {"profile": "cpu-demo", "engine": {"kind": "fake"}}
    file = tmp_path / "deploy.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return file


def test_a_new_key_is_shown_once_and_its_line_matches_it(capsys: Printed) -> None:
    assert main(["hash-key", "alice"]) == 0
    printed = capsys.readouterr().out
    key = re.search(r"^  (\S+)$", printed, re.MULTILINE)
    assert key is not None
    assert line_for("alice", key[1]) in printed
    assert printed.count(key[1]) == 1


def test_a_new_keys_line_has_its_limits(capsys: Printed) -> None:
    assert main(["hash-key", "alice", "--requests-per-minute", "60", "--max-concurrent", "4"]) == 0
    assert " requests_per_minute=60 max_concurrent=4\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["hash-key", "alice", "--tokens-per-minute", "0"])


def test_what_a_client_needs_goes_to_a_shell_and_the_advice_to_the_person(deploy: Path, capsys: Printed) -> None:
    assert (
        main(["client-env", "claude", "--file", str(deploy), "--url", "http://gpu-box:8000/", "--key", "s3cret"]) == 0
    )
    printed = capsys.readouterr()
    assert "http://gpu-box:8000" in printed.out
    assert "s3cret" in printed.out
    assert all(line.startswith("export ") for line in printed.out.splitlines())
    assert printed.err.startswith("# ")


def test_the_plan_has_every_layout_or_those_that_are_named(capsys: Printed) -> None:
    assert main(["plan", "h100-x8"]) == 0
    one = capsys.readouterr().out
    assert "h100-x8" in one
    assert "h200-x8" not in one
    assert main(["plan"]) == 0
    all_of_them = capsys.readouterr().out
    assert [name for name in profile_names() if name not in all_of_them] == []


def test_the_checks_of_a_start_end_with_one_word_and_a_status(deploy: Path, capsys: Printed) -> None:
    status = main(["preflight", "--file", str(deploy)])
    printed = capsys.readouterr().out
    assert ("\nReady" if status == 0 else "\nNot ready") in printed
    assert ("FAIL" in printed) == bool(status)


def test_the_doctor_of_a_service_that_is_down_says_so_and_what_a_start_would_find(
    deploy: Path, capsys: Printed
) -> None:
    status = main(["doctor", "--file", str(deploy)])
    printed = capsys.readouterr().out
    assert "does not answer" in printed.splitlines()[0]
    assert ("\nReady" if status == 0 else "\nNot ready") in printed


@pytest.mark.parametrize("command", ["preflight", "argv", "doctor", "serve"])
def test_a_file_that_is_not_there_is_told_with_its_name(command: str, tmp_path: Path, capsys: Printed) -> None:
    assert main([command, "--file", str(tmp_path / "none.yaml")]) == 1
    printed = capsys.readouterr()
    assert "none.yaml" in printed.out + printed.err


def test_an_unknown_command_is_a_wrong_command_line(capsys: Printed) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sing"])
    assert ended.value.code == 2
    assert "sing" in capsys.readouterr().err
