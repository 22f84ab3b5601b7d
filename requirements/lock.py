"""Writes `locks/`: every package at one version, with the hashes of its files. `make lock` runs it; uv resolves.

A pin that is in a lock stays as long as it fits; `python requirements/lock.py --upgrade` takes the newest of everything
that `*.in` does not pin. uv resolves for Linux x86_64 and both Pythons from any machine, and writes no index's address.

The GPU locks prefer the CPU locks' versions, since the CPU is where the tests run. The dev locks hold only what the
runtime locks lack, so that an image can leave them out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCKS = HERE / "locks"
VERSIONS = ("3.11", "3.12")
UV = Path(__file__).resolve().parents[1] / "build" / "tools" / "bin" / "uv"


def main() -> int:
    """Returns the exit status."""
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    for version in VERSIONS:
        for name in ("cpu", "gpu", "dev"):
            print(f"{name}, Python {version}", flush=True)
            write(name, version, upgrade)
    for name in ("tools", "deploy"):
        print(name, flush=True)
        compile_lock(lock_file(name, VERSIONS[0]), [f"{name}.in"], VERSIONS[0], upgrade)
    return 0


def write(name: str, version: str, upgrade: list[str]) -> None:
    """One lock. Raise `CalledProcessError` with uv's words on the terminal."""
    target = lock_file(name, version)
    cpu, gpu = lock_file("cpu", version), lock_file("gpu", version)
    if name == "gpu" and not target.exists():
        shutil.copy(cpu, target)
    if name != "dev":
        compile_lock(target, [f"{name}.in"], version, upgrade)
    if name == "cpu":
        with target.open("a", encoding="utf-8") as lock:
            lock.write((HERE / "torch-cpu.txt").read_text(encoding="utf-8"))
    if name == "dev":
        shared = sorted(pins(cpu))
        without = [f"--no-emit-package={package}" for package in shared]
        compile_lock(target, ["cpu.in", "dev.in"], version, [*upgrade, "-c", plain(cpu), *without])
        check_dev_fits_gpu(target, gpu, version)


def compile_lock(target: Path, sources: list[str], version: str, options: list[str]) -> None:
    """`uv pip compile` over `sources`; pins in `target` are preferred."""
    config = ["--config-file", "uv-cpu.toml"] if "cpu.in" in sources else ["--no-config"]
    python = ["--python-version", version, "--python-platform", "x86_64-manylinux_2_28", "--no-python-downloads"]
    output = ["--no-header", "--no-annotate", "--strip-extras", "--no-emit-index-url", "--no-emit-find-links"]
    command = [uv(), "pip", "compile", "--quiet", "--generate-hashes", *config, *python, *output, *options]
    subprocess.run([*command, "-o", target, *sources], cwd=HERE, check=True, stdout=subprocess.DEVNULL)


def plain(lock: Path) -> str:
    """A constraints file under build/: `name==version`, without torch, which uv cannot find."""
    lines = [f"{name}=={version}" for name, version in pins(lock).items() if not name.startswith("torch")]
    file = HERE.parent / "build" / f"{lock.stem}-constraints.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def check_dev_fits_gpu(dev: Path, gpu: Path, version: str) -> None:
    """Exit with a message when the dev lock, made beside the CPU's, does not complete the GPU's."""
    trial = HERE.parent / "build" / f"gpu-dev-py{version}.txt"
    shutil.copy(gpu, trial)
    compile_lock(trial, ["gpu.in", "dev.in"], version, ["-c", plain(dev)])
    wanted, held = pins(trial), {**pins(dev), **pins(gpu)}
    missing = sorted(name for name in wanted if wanted[name] != held.get(name))
    if missing:
        sys.exit(f"error: {dev.name} beside {gpu.name} leaves open: {', '.join(missing)}; pin them in dev.in")


def lock_file(name: str, version: str) -> Path:
    """Where a lock is."""
    return LOCKS / f"{name}-py{version.replace('.', '')}.txt"


def pins(lock: Path) -> dict[str, str]:
    """Normalized name and version of each line of a lock."""
    found = re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def uv() -> str:
    """uv of build/tools, or `$UV`."""
    return os.environ.get("UV") or str(UV)


if __name__ == "__main__":
    sys.exit(main())
