"""The locks of requirements/: complete, hash-checked, and what the environment was made from."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from serve_app.cli import machine_checks

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
KINDS, PYTHONS = ("cpu", "gpu"), ("311", "312")
ALL = [f"{kind}-py{python}" for kind in (*KINDS, "dev") for python in PYTHONS] + ["tools-py311", "deploy-py311"]
ENTRY = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+)(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def lock_text(name: str) -> str:
    text = (REQUIREMENTS / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def lock(name: str) -> dict[str, str]:
    return {canonicalize_name(entry["name"]): entry["version"] for entry in ENTRY.finditer(lock_text(name))}


def direct(kind: str) -> list[Requirement]:
    lines = (REQUIREMENTS / f"{kind}.in").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", ALL)
def test_every_line_of_a_lock_is_a_pin_with_hashes(name: str) -> None:
    assert not ENTRY.sub("", lock_text(name))
    assert len(lock(name)) == len(ENTRY.findall(lock_text(name)))


@pytest.mark.parametrize("name", ALL)
def test_locks_hold_every_direct_requirement_at_its_pin(name: str) -> None:
    pins = lock(name)
    for requirement in direct(name.split("-", maxsplit=1)[0]):
        assert Version(pins[canonicalize_name(requirement.name)]) in requirement.specifier, requirement


@pytest.mark.parametrize("name", ALL)
def test_no_lock_names_an_index_or_a_path_of_one_machine(name: str) -> None:
    assert not re.search(r"://|^-|/\w+/", lock_text(name), re.MULTILINE)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_cpu_locks_end_with_the_torch_that_is_kept_by_hand(python: str) -> None:
    text = (REQUIREMENTS / "locks" / f"cpu-py{python}.txt").read_text(encoding="utf-8")
    assert text.endswith((REQUIREMENTS / "torch-cpu.txt").read_text(encoding="utf-8"))
    assert not {"torchaudio", "torchcodec", "triton"} & set(lock(f"cpu-py{python}"))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("kind", KINDS)
def test_development_adds_packages_and_changes_none(kind: str, python: str) -> None:
    runtime, dev = lock(f"{kind}-py{python}"), lock(f"dev-py{python}")
    assert not set(runtime) & set(dev)


@pytest.mark.parametrize("python", PYTHONS)
def test_cpu_and_gpu_share_the_versions_of_what_the_service_itself_uses(python: str) -> None:
    cpu, gpu = lock(f"cpu-py{python}"), lock(f"gpu-py{python}")
    ours = {canonicalize_name(requirement.name) for requirement in direct("gpu") if requirement.name in cpu}
    assert "ray" in ours
    assert {name: gpu[name] for name in ours} == {name: cpu[name] for name in ours}


def test_this_environment_is_what_the_lock_says() -> None:
    python = f"{sys.version_info.major}{sys.version_info.minor}"
    # Not what else is on the path: setuptools puts its own copies of some packages there.
    installed = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    found = {canonicalize_name(item.name): item.version for item in installed}
    kind = "gpu" if "vllm" in found else "cpu"
    wanted = {**lock(f"{kind}-py{python}"), **lock(f"dev-py{python}")}
    # PyTorch's own index calls its torchvision 0.28.0+cpu.
    found["torchvision"] = found["torchvision"].removesuffix("+cpu")
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_preflight_reads_the_versions_of_the_lock(kind: str) -> None:
    pins = machine_checks.pinned(kind)
    assert pins["ray"] == "2.60.0"
    assert pins["torch"] == {"cpu": "2.13.0+cpu", "gpu": "2.14.0"}[kind]
