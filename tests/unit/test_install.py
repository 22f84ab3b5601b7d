"""`make venv` installs what the cluster needs, not only what this machine has."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from serve_app.profile import ROOT


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
    [("h100-x8", True), ("configs/b200-x4.yaml", True), ('"h200-x4"', True), ("auto", False), ("cpu-demo", False)],
)
def test_a_profile_of_gpus_asks_for_the_gpu_build_on_every_node(
    install: ModuleType, profile: str, *, gpus: bool
) -> None:
    found = install.profile_with_gpus(f"applications:\n  - args:\n      profile: {profile}  # why\n")
    assert (found is not None) == gpus
