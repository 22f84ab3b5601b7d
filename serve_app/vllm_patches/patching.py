"""How this package changes vLLM: one function at a time, once, and only where it has the expected shape.

A process with half of a change would be worse than one that does not start, so anything unexpected raises. `python -m
serve_app.vllm_patches.vllm_api_check` compares every `PatchTarget` with the source of a version that is not installed
yet.

vLLM loads general plugins in every process, front ends included. A patch that imported its target would load kernels
and models into processes that never use them, so it waits for the import (`after_import`).
"""

from __future__ import annotations

import functools
import importlib.machinery
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

_MARK = "_patched_by_step_serve"

Function = Callable[..., Any]
"""A function of vLLM, or ours in its place."""

MakeReplacement = Callable[[Function, ModuleType], Function]
"""Given the function as it is and its module, what to put in its place."""


class UnexpectedVllmError(RuntimeError):
    """vLLM has not the shape that a change was written for."""


@dataclass(frozen=True)
class PatchTarget:
    """A function of vLLM that we replace: its module, class ("" for one of the module's own), name, and the parameters
    that the replacement relies on. Or a class, as the module calls it to make an object."""

    module: str
    owner: str
    name: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(part for part in (self.module, self.owner, self.name) if part)


def minor_version(version: str) -> tuple[int, int]:
    """(0, 32) for "0.32.0" and for "0.32.1rc1+cpu"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def replace(target: PatchTarget, make: MakeReplacement) -> None:
    """Replace the target as soon as its module is imported.

    Raises `UnexpectedVllmError` (now or from that import) if it is not what it should be, or has a parameter that the
    replacement does not take. Doing so again changes nothing: vLLM runs plugins more than once.
    """
    after_import(target.module, lambda module: _replace_in(module, target, make))


def _replace_in(module: ModuleType, target: PatchTarget, make: MakeReplacement) -> None:
    owner = getattr(module, target.owner, None) if target.owner else module
    original = inspect.getattr_static(owner, target.name, None) if owner is not None else None
    is_classmethod = isinstance(original, classmethod)
    function = original.__func__ if isinstance(original, classmethod) else original
    if not callable(function):
        raise UnexpectedVllmError(f"there is no {target} to change")
    if hasattr(function, _MARK):
        return
    # A pydantic model with a reference to a later class has no signature yet.
    fields = getattr(function, "model_fields", None)
    missing = set(target.parameters) - set(inspect.signature(function).parameters if fields is None else fields)
    if missing:
        raise UnexpectedVllmError(f"{target} does not take {', '.join(sorted(missing))}")
    replacement = make(function, module)
    if not isinstance(function, type):
        _check_takes_all(target, function, replacement)
        functools.wraps(function)(replacement)
    setattr(replacement, _MARK, True)
    setattr(owner, target.name, classmethod(replacement) if is_classmethod else replacement)
    logger.debug("replaced %s", target)


def _check_takes_all(target: PatchTarget, function: Function, replacement: Function) -> None:
    """A newer vLLM may give a function one parameter more, and its callers pass it: at the first request, hours after
    the start of the download, and not now."""
    own = inspect.signature(replacement).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
        return
    added = [name for name in inspect.signature(function).parameters if name not in own]
    if added:
        raise UnexpectedVllmError(f"{target} takes {', '.join(added)}, which its replacement does not")


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
