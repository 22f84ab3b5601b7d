"""Mistakes in deploy.yaml outside of the application's arguments are told before a start, with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cli import deploy_checks, preflight
from serve_app.cli.check import CheckStatus
from serve_app.config import deployment
from serve_app.config.profile import ROOT
from serve_app.config.schema import ConfigError

TEXT = (ROOT / "deploy.yaml").read_text()
CANARY = """
  - name: step-canary
    route_prefix: null
    import_path: serve_app.canary:build
    runtime_env: {env_vars: {RAY_SERVE_ENABLE_HA_PROXY: "1"}}
    args: {profile: cpu-demo, canary: {share: 0.1}}
"""


def faults(tmp_path: Path, text: str) -> str:
    """What preflight has against the file before it looks at anything else."""
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    checks = [check for check in preflight.checks(file, None) if check.name != "versions"]
    assert {check.status for check in checks} == {CheckStatus.FAIL}, checks
    assert all(check.advice for check in checks)
    return "\n".join(map(str, checks))


def changed(before: str, after: str) -> tuple[str, int]:
    """The shipped file with one change, and the line of it."""
    assert before in TEXT
    return TEXT.replace(before, after, 1), TEXT[: TEXT.index(before)].count("\n") + 1


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("proxy_location:", "proxy_locatoin:", "unknown key `proxy_locatoin`; did you mean `proxy_location`?"),
        ("port: 8000", "prot: 8123", "unknown key `http_options.prot`; did you mean `port`?"),
        ("args:\n", "arguments:\n", "unknown key `applications.0.arguments`; did you mean `args`?"),
        ("import_path:", "import_pth:", "unknown key `applications.0.import_pth`; did you mean `import_path`?"),
        ("applications:", "aplications:", "unknown key `aplications`; did you mean `applications`?"),
        ("route_prefix: /", "zzz: /", "unknown key `applications.0.zzz`; known here: name, route_prefix, import_path"),
        ("route_prefix: /", "deployments: [{nam: x}]", "unknown key `applications.0.deployments.0.nam`; did you mean"),
    ],
)
def test_a_key_that_serve_would_pass_over_is_refused(tmp_path: Path, before: str, after: str, told: str) -> None:
    text, line = changed(before, after)
    assert f"deploy.yaml:{line}: {told}" in faults(tmp_path, text)


def test_a_key_of_the_canarys_application_is_refused_as_well(tmp_path: Path) -> None:
    assert "unknown key `applications.1.argz`" in faults(tmp_path, TEXT + CANARY.replace("args:", "argz:"))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("EveryNode", "Everywhere", "proxy_location: input should be"),
        ("route_prefix: /", "route_prefix: 1", "applications.0.route_prefix: input should be a valid string"),
        ("host: 0.0.0.0", "host: [0.0.0.0]", "http_options.host: input should be a valid string"),
    ],
)
def test_a_value_that_serve_refuses_is_told_in_its_words(tmp_path: Path, before: str, after: str, told: str) -> None:
    text, line = changed(before, after)
    assert f"deploy.yaml:{line}: {told}" in faults(tmp_path, text)


def test_arguments_that_are_all_commented_out_are_told(tmp_path: Path) -> None:
    text, _ = changed("      profile: auto", "")
    assert "applications.0.args: input should be a valid dictionary" in faults(tmp_path, text)


@pytest.mark.parametrize("value", ["3600", "0.5", "true", "null", "[1]"])
def test_a_variable_that_is_no_text_is_to_be_quoted(tmp_path: Path, value: str) -> None:
    text, line = changed('HARD_STOP_AFTER_S: "3600"', f"HARD_STOP_AFTER_S: {value}")
    told = faults(tmp_path, text)
    assert f"deploy.yaml:{line}: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S: " in told
    assert "write it in quotes" in told


def test_a_variable_of_either_application_is_looked_at(tmp_path: Path) -> None:
    text, line = changed("env_vars: *serve_options", "env_vars: {A: 1}")
    assert f"deploy.yaml:{line}: A: " in faults(tmp_path, text)
    told = faults(tmp_path, TEXT + CANARY.replace('"1"', "1"))
    assert f"deploy.yaml:{TEXT.count(chr(10)) + 5}: RAY_SERVE_ENABLE_HA_PROXY: " in told


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('HARD_STOP_AFTER_S: "3600"', 'HARD_STOP_AFTER_S: "1h"', "'1h' is no whole number"),
        ('HARD_STOP_AFTER_S: "3600"', 'HARD_STOP_AFTER_S: "0.5"', "'0.5' is no whole number"),
        ('TIMEOUT_SERVER_S: "3600"', 'TIMEOUT_SERVER_S: "inf"', "'inf' is no whole number"),
        ('LENGTH: "134217728"', 'LENGTH: "128MiB"', "'128MiB' is no whole number"),
        ('CONTROL_LOOP_INTERVAL_S: "0.5"', 'PORT_QUARANTINE_S: "long"', "'long' is no number"),
        ('CONTROL_LOOP_INTERVAL_S: "0.5"', 'HAPROXY_METRICS_PORT: "http"', "'http' is no whole number"),
    ],
)
def test_an_option_that_is_no_number_is_told_with_what_to_write(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    text, line = changed(before, after)
    found = faults(tmp_path, text)
    assert f"deploy.yaml:{line}: RAY_SERVE_" in found
    assert told in found
    assert "-> write " in found


@pytest.mark.parametrize("text", [TEXT, TEXT + CANARY], ids=["service", "canary"])
def test_a_sound_file_has_no_fault(tmp_path: Path, text: str) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    assert not list(deploy_checks.key_checks(deployment.read_yaml(file)))
    assert not list(deploy_checks.value_checks(deployment.read(file)))


def test_a_reader_of_the_file_refuses_a_variable_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(TEXT.replace('"0.5"', "0.5"))
    with pytest.raises(ConfigError, match="CONTROL_LOOP_INTERVAL_S: Serve takes only text"):
        deployment.read(file)
