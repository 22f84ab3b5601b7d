"""The tier of the real programs: skipped, with the reason, where they cannot be installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agents.install import CannotInstall
from tests.agents.programs import PROGRAMS, Program, Workplace


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ingress is built in this process: it looks for nothing on the internet."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """A home and a project of the test's own."""
    return Workplace.below(tmp_path)


@pytest.fixture(params=PROGRAMS, ids=lambda program: program.name)
def program(request: pytest.FixtureRequest) -> Program:
    """Each program in turn, installed."""
    return installed(request.param)


def installed(program: Program) -> Program:
    """The program, once it is there."""
    try:
        program.bin_folder()
    except CannotInstall as reason:
        pytest.skip(f"{program.name}: {reason}")
    return program
