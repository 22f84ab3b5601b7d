"""Lets a CUDA build of torchvision be imported on a CPU build of torch.

vLLM's Step image processor needs `torchvision.transforms` (plain tensor code). PyPI's torchvision for Linux is a CUDA build; on
a CPU torch its compiled part does not load, which it bears, but its import then names two operators that only
that part would have defined. Declaring them first is enough.

This file is copied into site-packages and started by a `.pth` line in every process of the environment (engine processes
are spawned, Ray starts its own), so at start-up it imports nothing beyond `sys`: it waits for torchvision. It must stand alone.
"""

import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class TorchvisionOnCpu:
    """A meta-path finder that finds nothing: it prepares torch when torchvision is about to be imported."""

    def __init__(self):
        self.library = None  # torch drops the declared operators when their library object goes

    def find_spec(self, fullname, path=None, target=None):
        """Declares the operators on the first look for torchvision, where its build does not fit the torch."""
        if fullname == "torchvision" and self.library is None:
            from importlib.machinery import PathFinder

            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.origin and is_foreign_build(spec.origin):
                self.declare()
        return None

    def declare(self):
        import torch

        self.library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            self.library.define(schema)


def is_foreign_build(torchvision_init):
    """Whether the torchvision at this path is built for a GPU while the torch beside it is built for none."""
    import os
    import re

    try:
        with open(os.path.join(os.path.dirname(torchvision_init), "version.py"), encoding="utf-8") as file:
            version = re.search(r"__version__ = '([^']*)'", file.read())
    except OSError:
        return False
    if version is None or not re.search(r"\+(cu|rocm|xpu)", version.group(1)):
        return False
    import torch

    return torch.version.cuda is None and torch.version.hip is None and getattr(torch.version, "xpu", None) is None


def install():
    """Start waiting for torchvision in this process."""
    if not any(type(finder).__name__ == TorchvisionOnCpu.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionOnCpu())
