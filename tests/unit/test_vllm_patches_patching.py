"""How vLLM is changed: late, once, and only where it looks as expected."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from serve_app.vllm_patches.patching import (
    Function,
    PatchTarget,
    UnexpectedVllmError,
    after_import,
    minor_version,
    replace,
)

SOURCE = """
class Kernel:
    def run(self, tokens, fast=False):
        return tokens

    @classmethod
    def make(cls, size):
        return cls, size
"""


@pytest.fixture
def module_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "fake_vllm_module.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield "fake_vllm_module"
    sys.modules.pop("fake_vllm_module", None)
    sys.meta_path[:] = finders


def doubled(original: Function, _: ModuleType) -> Function:
    def run(self: Any, tokens: int, *, fast: bool = False) -> Any:
        return 2 * original(self, tokens, fast)

    return run


def test_a_parameter_that_the_replacement_does_not_take_stops_the_import(module_name: str) -> None:
    def narrow(original: Function, _: ModuleType) -> Function:
        def run(self: Any, tokens: int) -> Any:
            return original(self, tokens)

        return run

    replace(PatchTarget(module_name, "Kernel", "run", ("tokens",)), narrow)
    with pytest.raises(UnexpectedVllmError, match=r"Kernel\.run takes fast, which its replacement does not"):
        importlib.import_module(module_name)


def test_a_replacement_may_pass_on_whatever_else_comes(module_name: str) -> None:
    def wide(original: Function, _: ModuleType) -> Function:
        def run(self: Any, *others: Any, **more: Any) -> Any:
            return 3 * original(self, *others, **more)

        return run

    replace(PatchTarget(module_name, "Kernel", "run", ("tokens",)), wide)
    assert importlib.import_module(module_name).Kernel().run(1, fast=True) == 3


def test_a_patch_waits_for_the_import_and_is_done_after_it(module_name: str) -> None:
    seen: list[ModuleType] = []
    after_import(module_name, seen.append)
    assert module_name not in sys.modules
    importlib.util.find_spec(module_name)
    assert seen == [], "a mere look does not use the patch up"
    module = importlib.import_module(module_name)
    assert seen == [module]
    after_import(module_name, seen.append)
    assert seen == [module, module], "an imported module is patched at once"


def test_two_patches_may_wait_for_one_module(module_name: str) -> None:
    seen: list[str] = []
    after_import(module_name, lambda _: seen.append("first"))
    after_import(module_name, lambda _: seen.append("second"))
    importlib.import_module(module_name)
    assert sorted(seen) == ["first", "second"]


def test_a_failing_patch_fails_the_import(module_name: str) -> None:
    def refuse(_: ModuleType) -> None:
        raise UnexpectedVllmError("not as expected")

    after_import(module_name, refuse)
    with pytest.raises(UnexpectedVllmError):
        importlib.import_module(module_name)
    assert module_name not in sys.modules


def test_a_method_is_replaced_once_however_often_that_is_asked(module_name: str) -> None:
    target = PatchTarget(module_name, "Kernel", "run", ("tokens",))
    replace(target, doubled)
    module = importlib.import_module(module_name)
    replace(target, doubled)
    assert module.Kernel().run(4) == 8
    assert module.Kernel.run.__name__ == "run"


def test_a_class_method_stays_one(module_name: str) -> None:
    def shifted(original: Function, _: ModuleType) -> Function:
        def make(cls: Any, size: int) -> Any:
            return original(cls, size + 1)

        return make

    replace(PatchTarget(module_name, "Kernel", "make", ("size",)), shifted)
    module = importlib.import_module(module_name)
    assert module.Kernel.make(3) == (module.Kernel, 4)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (("Gone", "run", ()), "there is no"),
        (("Kernel", "gone", ()), "there is no"),
        (("Kernel", "run", ("tokens", "expert_map")), "does not take expert_map"),
    ],
)
def test_what_is_not_as_expected_is_not_changed(
    module_name: str, target: tuple[str, str, tuple[str, ...]], complaint: str
) -> None:
    importlib.import_module(module_name)
    with pytest.raises(UnexpectedVllmError, match=complaint):
        replace(PatchTarget(module_name, *target), doubled)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1rc1+cpu", "0.32.0.dev3"])
def test_versions_count_by_their_minor_number(version: str) -> None:
    assert minor_version(version) == (0, 32)


def test_a_namespace_of_vllm_is_not_imported_for_a_patch() -> None:
    before = set(sys.modules)
    finders = list(sys.meta_path)
    try:
        replace(PatchTarget("vllm.model_executor.models.no_such_model", "X", "y", ()), doubled)
        assert {name for name in set(sys.modules) - before if name.startswith("vllm")} == set()
    finally:
        sys.meta_path[:] = finders


ALL_CHANGES = """
import importlib
from serve_app.vllm_patches import answers, chunk_classes, grammars, resume, shared_prefixes, token_cache
from serve_app.vllm_patches.vllm_api_check import TARGETS

for change in (
    answers.correct_answers, chunk_classes.use_structs, token_cache.remember_tokens, resume.continue_requests,
    grammars.keep_to_their_requests, shared_prefixes.keep_junctions_findable,
):
    change()
for module in {target.module for target in TARGETS}:
    try:
        importlib.import_module(module)
    except ImportError as error:  # kernels, which a GPU's vLLM has not here
        assert "vllm" in str(error) or "triton" in str(error), error
"""


@pytest.mark.slow
def test_each_change_fits_the_functions_of_this_vllm() -> None:
    """Over the GPU build, too: `make test-gpu-frontend`. In a process of its own, which is changed for good."""
    done = subprocess.run([sys.executable, "-c", ALL_CHANGES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
