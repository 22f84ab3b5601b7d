"""Preflight looks at every pool and at the canary as `build()` and their replicas will."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from serve_app.__main__ import main
from serve_app.app import build
from serve_app.cli import config_checks, preflight
from serve_app.cli.check import Check, CheckStatus
from serve_app.config import fleet, hardware, machine
from serve_app.config.fleet import CANARY, FleetPart
from serve_app.config.hardware import NodeGpus
from serve_app.config.profile import load_config
from serve_app.config.schema import ConfigError

HERE = NodeGpus("this machine", None, 0, 8)
UNSET: dict[str, object] = {"engine": {"flags": {"max-num-seqs": None}}}
"""A flag that is refused before vLLM's parser is imported."""
BAD_FLAGS = {"engine": {"flags": {"max-num-seqz": 7, "block-size": "banana"}}}


@pytest.fixture(autouse=True)
def one_idle_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "this_machine", lambda: HERE)
    monkeypatch.setattr(hardware, "cluster_nodes", lambda: [HERE])
    for name in ("port_checks", "machine_checks"):
        monkeypatch.setattr(preflight, name, lambda *_: iter(()))
    monkeypatch.setattr(preflight, "FLAGS_PASSED", tmp_path / "build" / "flags-passed")


def deploy_file(
    tmp_path: Path, args: Mapping[str, object] | None = None, canary: Mapping[str, object] | None = None
) -> Path:
    service = {"profile": "cpu-demo", **(args or {})}
    applications: list[object] = [{"name": "step", "import_path": "serve_app.app:build", "args": service}]
    if canary is not None:
        held = {"profile": "cpu-demo", "canary": {"share": 0.1}, **canary}
        judge = {"name": "step-canary", "import_path": "serve_app.canary:build", "route_prefix": None, "args": held}
        applications.append(judge)
    file = tmp_path / "deploy.yaml"
    file.write_text(yaml.safe_dump({"applications": applications}))
    return file


def fails(file: Path) -> dict[str, Check]:
    return {check.name: check for check in preflight.checks(file, None) if check.status is CheckStatus.FAIL}


def pools(second: Mapping[str, object]) -> dict[str, object]:
    """Two pools, of which the second differs."""
    return {"engine": {"flags": {"max-model-len": 4096}}, "pools": [{"name": "a"}, {"name": "b", **second}]}


def test_the_flags_of_a_second_pool_are_checked(tmp_path: Path) -> None:
    parts = [FleetPart("a", load_config({"profile": "cpu-demo", "engine": {"kind": "fake"}}, [HERE]))]
    parts += fleet.load_args({"profile": "cpu-demo", **pools(UNSET)}, [HERE]).parts[1:]
    file = deploy_file(tmp_path, pools(UNSET))
    (check,) = config_checks.flag_checks(file, parts, preflight.FLAGS_PASSED)
    assert (check.status, check.name) == (CheckStatus.FAIL, "flags b")
    assert "engine.flags.max-num-seqs is not set" in check.message
    assert not preflight.FLAGS_PASSED.exists()


@pytest.mark.slow
def test_a_wrong_flag_of_a_second_pool_is_no_ready_service(tmp_path: Path) -> None:
    found = fails(deploy_file(tmp_path, pools(BAD_FLAGS)))
    assert list(found) == ["flags b"]
    assert "unrecognized arguments: --max-num-seqz; did you mean `max-num-seqs`?" in found["flags b"].message


@pytest.mark.slow
def test_a_wrong_flag_of_the_canary_is_no_ready_service(tmp_path: Path) -> None:
    found = fails(deploy_file(tmp_path, {"engine": {"kind": "fake"}}, BAD_FLAGS))
    assert list(found) == ["flags canary"]


@pytest.mark.parametrize(
    ("canary", "name", "told"),
    [
        ({"model": {"source": "/models/not-there"}}, "model canary", "no such folder"),
        ({"ingress": {"keys_file": "/nope"}}, "keys canary", "/nope"),
        ({"engine": {"compile_cache_dir": "not/absolute"}}, "kernels canary", "is relative"),
        ({"replicas": {"min": 9, "max": 9, "cpus_per_replica": 1}}, "hardware", "room for 8"),
        ({"replicas": {"min": 5, "max": 5, "cpus_per_replica": 1}}, "hardware", "pool canary has no room for 5"),
    ],
)
def test_what_a_canarys_replica_would_refuse_is_told(
    tmp_path: Path, canary: Mapping[str, object], name: str, told: str
) -> None:
    service = {"replicas": {"min": 4, "max": 4, "cpus_per_replica": 1}}
    found = fails(deploy_file(tmp_path, service, canary))
    assert list(found) == [name]
    assert told in found[name].message


def test_a_canarys_layout_is_reckoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = NodeGpus("this machine", "A100", 8, 64, gpu_bytes=40 * 10**9)
    monkeypatch.setattr(hardware, "this_machine", lambda: node)
    canary = {"profile": "h100-x8", "replicas": {"accelerator_type": "A100"}}
    found = fails(deploy_file(tmp_path, None, canary))
    assert "leave no room for a cache" in found["layout canary"].message


def test_a_canary_in_the_services_own_args_is_refused_with_the_words_of_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"engine": {"kind": "fake"}, "canary": {"share": 0.1}}
    found = fails(deploy_file(tmp_path, args))
    monkeypatch.setenv(machine.RUN_MARK, "1-1.00")
    with pytest.raises(ConfigError) as caught:
        build({"profile": "cpu-demo", **args})
    assert str(caught.value) in found["config"].message
    assert "deploy.yaml:3: " in found["config"].message


def test_the_mark_of_a_run_does_not_stand_for_checked_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.RUN_MARK, "1-1.00")
    with pytest.raises(ConfigError, match="max-num-seqs is not set"):
        preflight.checked_fleet({"profile": "cpu-demo", **UNSET})


def test_flags_that_preflight_has_passed_are_not_parsed_again() -> None:
    args = {"profile": "cpu-demo", **UNSET}
    preflight.FLAGS_PASSED.parent.mkdir()
    preflight.FLAGS_PASSED.write_text(config_checks.flags_mark(load_config(args, [HERE])))
    assert preflight.checked_fleet(args).ingress.profile == "cpu-demo"
    with pytest.raises(ConfigError, match="max-num-seqs is not set"):
        preflight.checked_fleet({**args, "engine": {"flags": {"max-num-seqs": None, "seed": 1}}})


def test_flags_under_another_environment_are_other_flags() -> None:
    config, other = (load_config({"profile": "cpu-demo", "engine": {"env": {"A": x}}}, [HERE]) for x in "12")
    assert config_checks.flags_mark(config) != config_checks.flags_mark(other)


def test_the_command_line_of_a_part_that_is_not_there_names_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(deploy_file(tmp_path, pools({})))
    for name in ("c", CANARY):
        assert main(["argv", "--file", file, "--part", name]) == 1
        assert f"no part `{name}`; there is a, b" in capsys.readouterr().err
