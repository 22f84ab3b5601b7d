"""`python -m tests.gpu_frontend.install FOLDER`: the Python of the GPU build of vLLM, without its libraries.

The wheel is 336 MB to download, most of it kernels, and asks for 4 GB of CUDA besides. A front end needs none of that:
what is unpacked here (113 MB) is laid over the environment of `make venv` by PYTHONPATH, whose torch and transformers
fit. The native modules are simply not there, as they cannot be loaded on a node without a driver.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = (".so", "/vllm-rs")
NEEDED_TOO = "orjson==3.13.0"
"""What the GPU build imports in a front end and the CPU build does not ask for."""


def wanted() -> str:
    """`vllm==version`, as gpu.in has it."""
    lines = (ROOT / "requirements" / "gpu.in").read_text(encoding="utf-8").splitlines()
    return next(line.split()[0] for line in lines if line.startswith("vllm=="))


def main() -> int:
    """Done already: returns at once. Status 0 also where the wheel cannot be had: the tests then say so and skip."""
    folder = Path(sys.argv[1]).absolute()
    stamp = folder / "installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted():
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    print(f"Fetching {wanted()} (336 MB) and unpacking its Python ...", flush=True)
    quiet = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    only = ["--no-deps", "--only-binary", ":all:"]
    got = subprocess.run([*quiet, "download", *only, "-d", str(downloads), wanted()], check=False)
    wheel = next(iter(downloads.glob("vllm-*.whl")), None)
    if got.returncode or wheel is None:
        print(f"{wanted()} cannot be had here: the tests of this tier skip", flush=True)
        return 0
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if not name.endswith(NATIVE)])
    subprocess.run([*quiet, "install", *only, "--target", str(folder), NEEDED_TOO], check=True)
    shutil.rmtree(downloads)
    stamp.write_text(wanted(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
