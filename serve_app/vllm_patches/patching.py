"""How this package changes vLLM: one function at a time, once, and only where it has the expected shape.

A process that went on with half of a change would be worse than one that does not start, so whatever is not as expected
raises. `python -m serve_app.vllm_patches.vllm_api_check` compares every `Target` with the source of a version that is
not installed yet.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from serve_app.vllm_patches.import_hook import after_import

logger = logging.getLogger(__name__)

_MARK = "_patched_by_step_serve"

Function = Callable[..., Any]
"""A function of vLLM, or ours in its place."""

MakeReplacement = Callable[[Function, ModuleType], Function]
"""Given the function as it is and its module, what to put in its place."""


class UnexpectedVllmError(RuntimeError):
    """vLLM has not the shape that a change was written for."""


@dataclass(frozen=True)
class Target:
    """A function of vLLM that we replace: its module, class ("" for one of the module's own), name, and the parameters
    that the replacement relies on."""

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


def replace(target: Target, make: MakeReplacement) -> None:
    """Replace the target as soon as its module is imported.

    Raises `UnexpectedVllmError` (now or from that import) if it is not what it should be. Doing so again changes
    nothing: vLLM runs plugins more than once.
    """
    after_import(target.module, lambda module: _replace_in(module, target, make))


def _replace_in(module: ModuleType, target: Target, make: MakeReplacement) -> None:
    owner = getattr(module, target.owner, None) if target.owner else module
    original = inspect.getattr_static(owner, target.name, None) if owner is not None else None
    is_classmethod = isinstance(original, classmethod)
    function = original.__func__ if isinstance(original, classmethod) else original
    if not callable(function):
        raise UnexpectedVllmError(f"there is no {target} to change")
    if hasattr(function, _MARK):
        return
    missing = set(target.parameters) - set(inspect.signature(function).parameters)
    if missing:
        raise UnexpectedVllmError(f"{target} does not take {', '.join(sorted(missing))}")
    replacement = functools.wraps(function)(make(function, module))
    setattr(replacement, _MARK, True)
    setattr(owner, target.name, classmethod(replacement) if is_classmethod else replacement)
    logger.debug("replaced %s", target)
