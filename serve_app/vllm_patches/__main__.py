"""`python -m serve_app.vllm_patches`: makes torchvision importable in this environment, and reports what it did."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

from serve_app.vllm_patches import torchvision_cpu

MODULE = "_step_serve_torchvision"
"""Its name in site-packages: a copy of `torchvision_cpu.py`, so that the environment starts without this one."""


def main() -> int:
    """Install, refresh or remove the hook. Returns a process exit status."""
    site_packages = Path(sysconfig.get_path("purelib"))
    module, pth = site_packages / f"{MODULE}.py", site_packages / f"{MODULE}.pth"
    if not needed():
        for path in (module, pth):
            path.unlink(missing_ok=True)
        print("torchvision fits torch here (or is not installed): no hook needed, none left behind")
        return 0
    shutil.copyfile(str(torchvision_cpu.__file__), module)
    pth.write_text(f"import {MODULE}; {MODULE}.install()\n", encoding="utf-8")
    print(f"torchvision is a GPU build and torch a CPU build: an import hook now bridges them ({pth})")
    return 0


def needed() -> bool:
    """Whether this environment's torchvision is built for a GPU and its torch is not."""
    spec = importlib.util.find_spec("torchvision")
    return spec is not None and spec.origin is not None and torchvision_cpu.is_foreign_build(spec.origin)


if __name__ == "__main__":
    sys.exit(main())
