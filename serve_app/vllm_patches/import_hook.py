"""Run a function on a module as soon as it has been imported, without importing it now.

vLLM loads general plugins in every process, front ends included. A patch that imported its target would drag kernels
and models into processes that never use them, so a patch waits for its target here.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

Patch = Callable[[ModuleType], None]


def after_import(name: str, patch: Patch) -> None:
    """Call `patch` with the module `name`: now if it is imported, else right after its import.

    An exception of `patch` fails that import: a process must not go on with half a patch.
    """
    module = sys.modules.get(name)
    if module is not None:
        patch(module)
    else:
        sys.meta_path.insert(0, _Waiting(name, patch))


class _Waiting(MetaPathFinder):
    def __init__(self, name: str, patch: Patch) -> None:
        self._name = name
        self._patch = patch

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name or self not in sys.meta_path:
            return None
        # Only those behind this one: before it may stand another that waits for the same module, and asks this one.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            if not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                self._patch_after(spec)
                return spec
        return None

    def _patch_after(self, spec: importlib.machinery.ModuleSpec) -> None:
        loader = spec.loader
        if loader is None:
            return
        execute = loader.exec_module

        def execute_then_patch(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:  # a mere `find_spec` by someone else must not use the patch up
                sys.meta_path.remove(self)
                self._patch(module)

        # Each spec has a loader of its own, so this changes one import. Wrapping the loader in a class of ours instead
        # would hide it from `inspect.getsource`, which torch's compiler needs.
        loader.exec_module = execute_then_patch  # type: ignore[method-assign]  # this one loader, for this one import
