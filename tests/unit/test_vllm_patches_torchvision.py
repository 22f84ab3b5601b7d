"""The import hook that lets a GPU build of torchvision load on a CPU torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.vllm_patches import torchvision_cpu

HOOK = Path(str(torchvision_cpu.__file__))


@pytest.fixture
def cpu_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A torch that says that it is built for no GPU, instead of the real one."""
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("from . import version\n")
    (package / "version.py").write_text("cuda = None\nhip = None\n")
    real = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torch"}
    for name in real:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        del sys.modules[name]
    sys.modules.update(real)


@pytest.mark.parametrize(
    ("version", "foreign"),
    [("0.28.0+cu130", True), ("0.28.0+rocm6.4", True), ("0.28.0+cpu", False), ("0.28.0a0+1234567", False)],
)
def test_only_a_gpu_build_beside_a_cpu_torch_is_foreign(
    tmp_path: Path, cpu_torch: Path, version: str, *, foreign: bool
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '{version}'\n")
    assert cpu_torch.exists()
    assert torchvision_cpu.is_foreign_build(str(tmp_path / "__init__.py")) is foreign


def test_a_torchvision_without_a_version_is_left_alone(tmp_path: Path) -> None:
    assert not torchvision_cpu.is_foreign_build(str(tmp_path / "__init__.py"))


def test_the_hook_stands_alone_and_imports_next_to_nothing(tmp_path: Path) -> None:
    """It is copied into site-packages, and every interpreter of the environment pays for it."""
    (tmp_path / "the_hook.py").write_text(HOOK.read_text())
    probe = (
        "import sys; before = set(sys.modules); import the_hook; the_hook.install(); the_hook.install();"
        "print(sorted(set(sys.modules) - before), sum(type(f).__name__ == 'TorchvisionOnCpu' for f in sys.meta_path))"
    )
    output = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {probe}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output.strip() == "['__future__', 'the_hook'] 1"


@pytest.mark.engine
def test_torchvision_can_be_imported_in_this_environment() -> None:
    code = "import torchvision.transforms as t; print(t.Resize.__name__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "Resize"
