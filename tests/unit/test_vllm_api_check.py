"""The check that every vLLM name we use exists in a given version's source."""

from __future__ import annotations

import importlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

from serve_app.vllm_patches.patching import PatchTarget
from serve_app.vllm_patches.source_tree import SourceTree
from serve_app.vllm_patches.vllm_api_check import PACKAGE, TARGETS, check, check_targets, main, users

SOURCES = {
    "vllm/__init__.py": "def __getattr__(name): ...\nLAZY = {'Easy': '.engine:Engine'}\n",
    "vllm/engine.py": (
        "from .base import Base\nfrom .moved import Moved as Renamed\n"
        "class Config:\n    seats: int\n    inner: 'Config'\n"
        "class Engine(Base):\n"
        "    config: Config\n"
        "    def __init__(self, seats, *, fast=False):\n        self.seats = seats\n"
        "    def start(self, wait=True): ...\n"
        "    @classmethod\n    def make(cls, config) -> 'Engine': ...\n"
    ),
    "vllm/base.py": (
        "import enum\nclass Base:\n    def stop(self, timeout=None): ...\nclass Mode(enum.Enum):\n    ON = 1\n"
    ),
    "vllm/moved.py": "class Moved:\n    size: int\n    name: str = ''\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "vllm-9.9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in SOURCES.items():
            archive.writestr(name, source)
    return path


def problems_of(wheel: Path, code: str) -> list[str]:
    file = wheel.with_name("ours.py")
    file.write_text(code)
    problems, checked = check(SourceTree.open(PACKAGE, wheel), [file])
    assert checked > 0
    return problems


@pytest.mark.parametrize(
    "code",
    [
        "from vllm.engine import Engine\nEngine(4, fast=True).start(wait=False)",
        "from vllm import Easy, engine\nengine.Engine.make(config=1).stop(timeout=3)",
        "from vllm.base import Mode\nMode.ON.value",
        "from vllm.engine import Renamed\nRenamed(size=3, name='x')",
        "try:\n    from vllm.new import Engine\nexcept ImportError:\n    from vllm.engine import Engine\nEngine(1)",
        "def f():\n    from vllm.engine import Engine\n    def g(e: Engine):\n        e.start()\n        e.seats",
        "from vllm.engine import Config\ndef f(c: Config | None):\n    return c.inner.inner.seats",
        "from vllm.engine import Engine\nclass Ours(Engine):\n    def f(self):\n        self.a = 1\n        self.seats",
    ],
)
def test_what_is_there_is_not_complained_about(wheel: Path, code: str) -> None:
    assert problems_of(wheel, code) == []


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("from vllm.gone import Engine", "ours.py:1: no vllm.gone.Engine (now in vllm.engine?)"),
        ("import vllm.gone", "no module vllm.gone"),
        ("from vllm.engine import Engine\nEngine(4, quick=True)", "ours.py:2: vllm.engine.Engine takes no quick"),
        ("from vllm.engine import Engine\nEngine(4).start(later=1)", "vllm.engine.start takes no later"),
        ("from vllm.engine import Engine\nEngine(4).halt()", "vllm.engine.Engine has no halt"),
        ("from vllm.base import Mode\nMode.OFF", "vllm.base.Mode has no OFF"),
        ("from vllm.engine import Renamed\nRenamed(weight=3)", "takes no weight"),
        ("from vllm.engine import Config\ndef f(c: Config):\n    c.inner.legs", "vllm.engine.Config has no legs"),
        (
            "from vllm.engine import Config\nclass Ours:\n    config: Config\n    def f(self): self.config.legs",
            "Config has no legs",
        ),
        (
            "from vllm.engine import Engine\nclass Ours(Engine):\n    def f(self): self.halt()",
            "vllm.engine.Engine has no halt for our subclass",
        ),
        (
            "try:\n    from vllm.a import X\nexcept ImportError:\n    from vllm.b import X",
            "no vllm.a.X",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_place(wheel: Path, code: str, complaint: str) -> None:
    (problem,) = problems_of(wheel, code)
    assert complaint in problem


def test_the_command_fails_for_a_version_that_lacks_what_we_use(
    wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--source", str(wheel)]) == 1
    assert "serve_app/engine/vllm_process.py" in capsys.readouterr().out


def installed() -> SourceTree:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed here")
    return SourceTree.open(PACKAGE, Path(spec.origin).parent)


def test_every_name_we_use_is_in_the_installed_vllm() -> None:
    source = installed()
    problems, checked = check(source, users())
    assert problems == []
    assert checked > 100
    assert check_targets(source, TARGETS) == []


def test_a_function_to_change_that_is_gone_or_takes_other_things_is_named(wheel: Path) -> None:
    source = SourceTree.open(PACKAGE, wheel)
    assert check_targets(source, [PatchTarget("vllm.engine", "Engine", "start", ("wait",))]) == []
    gone, other = check_targets(
        source,
        [
            PatchTarget("vllm.engine", "Engine", "halt", ()),
            PatchTarget("vllm.engine", "Engine", "start", ("wait", "later")),
        ],
    )
    assert "there is no vllm.engine.Engine.halt" in gone
    assert "vllm.engine.Engine.start does not take later" in other


@pytest.mark.engine
def test_reading_the_installed_vllm_agrees_with_importing_it() -> None:
    """The reader says that a name is there; the import must then find it."""
    source = installed()
    for module, name in [
        ("vllm", "__version__"),
        ("vllm.platforms", "current_platform"),
        ("vllm.renderers", "renderer_from_config"),
        ("vllm.v1.executor", "Executor"),
        ("vllm.v1.engine", "EngineCoreOutput"),
        ("vllm.v1.engine.async_llm", "AsyncLLM"),
    ]:
        assert source.resolve(module, name) is not None
        assert hasattr(importlib.import_module(module), name)
    assert source.resolve("vllm.v1.engine", "NoSuchThing") is None
