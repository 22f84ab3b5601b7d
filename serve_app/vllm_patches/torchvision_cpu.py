"""Lets a CUDA build of torchvision be imported on a CPU build of torch.

vLLM's Step image processor needs `torchvision.transforms` (plain tensor code). PyPI's torchvision for Linux is a CUDA
build; on a CPU torch its compiled part does not load, which it tolerates, but its import then uses two operators that
only that part would have defined. Declaring them first is enough.

This file is copied into site-packages and started by a `.pth` line in every process of the environment (engine
processes are spawned, Ray starts its own), so at start-up it imports next to nothing: it waits for torchvision. It must
not depend on other files.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` for it would cost more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from torch.library import Library

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class TorchvisionOnCpu:
    """A meta-path finder that finds nothing: it prepares torch when torchvision is about to be imported."""

    def __init__(self) -> None:
        self.library: Library | None = None  # kept: torch drops the operators when their library object goes

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Declares the operators on the first look for torchvision, where its build does not fit the torch."""
        if fullname == "torchvision" and self.library is None:
            from importlib.machinery import PathFinder

            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.origin and is_foreign_build(spec.origin):
                self.library = declare()


def declare() -> Library:
    """Declare the operators; they exist for as long as the result does."""
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def is_foreign_build(torchvision_init: str) -> bool:
    """Whether the torchvision at this path is built for a GPU while the torch beside it is built for none."""
    import re
    from pathlib import Path

    try:
        source = Path(torchvision_init).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    version = re.search(r"__version__ = '([^']*)'", source)
    if version is None or not re.search(r"\+(cu|rocm|xpu)", version.group(1)):
        return False
    import torch

    return torch.version.cuda is None and torch.version.hip is None and getattr(torch.version, "xpu", None) is None


def install() -> None:
    """Start waiting for torchvision in this process."""
    if not any(type(finder).__name__ == TorchvisionOnCpu.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionOnCpu())
