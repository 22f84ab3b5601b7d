"""`make venv` installs what the cluster needs, not only what this machine has."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from serve_app.config.profile import ROOT


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("step_install", ROOT / "requirements" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("profile", "gpus"),
    [
        ("h100-x8", True),
        ("configs/b200-x4.yaml", True),
        ('"h200-x4"', True),
        ("auto", False),
        ("cpu-demo", False),
        ("nowhere", False),
    ],
)
def test_a_profile_of_gpus_asks_for_the_gpu_build_on_every_node(
    install: ModuleType, profile: str, *, gpus: bool
) -> None:
    found = install.profile_with_gpus(f"applications:\n  - args:\n      profile: {profile}  # why\n")
    assert (found is not None) == gpus


@pytest.mark.parametrize(
    ("deploy", "found"),
    [
        ("args: {profile: h100-x8, model: {source: /m}}", "h100-x8"),
        ("args:\n  # profile: h100-x8\n  profile: auto", None),
        ("args:\n  profile: cpu-demo\n  replicas: {gpus_per_replica: 8}", "cpu-demo"),
        ("args:\n  profile: h100-x8\n  replicas:\n    gpus_per_replica: 0", None),
        ("applications: []", None),
    ],
)
def test_deploy_yaml_is_read_however_it_is_written(install: ModuleType, deploy: str, found: str | None) -> None:
    assert install.profile_with_gpus(deploy) == found


@pytest.mark.parametrize(
    ("profile", "forced", "kind", "says"),
    [
        ("h100-x8", "", "gpu", "profile h100-x8 in deploy.yaml is for GPUs, on this node or others"),
        ("auto", "", "cpu", "STEP_SERVE_MACHINE=gpu for a node of a cluster that has GPUs elsewhere"),
        ("auto", "gpu", "gpu", "STEP_SERVE_MACHINE says so"),
        ("h100-x8", "cpu", "cpu", "STEP_SERVE_MACHINE says so"),
    ],
)
def test_a_head_without_a_gpu_is_told_what_it_gets_and_how_to_get_the_other(
    install: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    profile: str,
    forced: str,
    kind: str,
    says: str,
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "deploy.yaml").write_text(f"args:\n  profile: {profile}\n", encoding="utf-8")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    monkeypatch.setenv("STEP_SERVE_MACHINE", forced)
    found, why = install.machine_kind()
    assert found == kind
    assert says in why
