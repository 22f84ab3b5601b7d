"""Makes the virtual environment and installs what is locked here. Done already: returns at once.

Run by make with the system's Python, so it needs nothing but the standard library: `python3 requirements/install.py
.venv`, or with `--no-dev` behind it for a service alone (the images do so).

Every package comes from `locks/`, at one version and with one of the hashes there; pip resolves nothing (--no-deps).
torch for a CPU is not on PyPI: it comes from wherever pip is set up to find `2.13.0+cpu`, or from PyTorch's own index.
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
    venv, dev = Path(sys.argv[1]).absolute(), "--no-dev" not in sys.argv[2:]
    try:
        install(venv, dev)
    except CannotInstall as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def install(venv: Path, dev: bool) -> None:
    """Raise `CannotInstall`. A stamp in the environment tells the next call that nothing is left to do."""
    if sys.version_info[:2] not in VERSIONS:
        found = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise CannotInstall(f"Python 3.11 or 3.12 is needed, this is {found}: `make PYTHON=/path/to/python3.11 ...`")
    kind, why = machine_kind()
    locks = [lock_file(kind), *([lock_file("dev")] if dev else [])]
    stamp, wanted = venv / "step-serve.stamp", fingerprint(kind, locks)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"Setting up {venv.name} for a {kind.upper()} machine ({why}); a few minutes the first time.", flush=True)
    stamp.unlink(missing_ok=True)
    make_environment(venv)
    python = venv / "bin" / "python"
    install_locked(python, kind, locks)
    pip(python, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if kind == "cpu":
        run([str(python), "-m", "serve_app.vllm_patches"], "the torchvision check failed")
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


def lock_file(kind: str) -> Path:
    """The lock for this Python."""
    return HERE / "locks" / f"{kind}-py{sys.version_info.major}{sys.version_info.minor}.txt"


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


def fingerprint(kind: str, locks: list[Path]) -> str:
    """Changes when there is something to install anew."""
    digest = hashlib.sha256(f"{kind} {sys.version_info[:2]} {ROOT}".encode())
    for file in (*locks, ROOT / "pyproject.toml", Path(__file__)):
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


def install_locked(python: Path, kind: str, locks: list[Path]) -> None:
    """Everything in the locks. What has another hash is refused by pip, wherever it comes from."""
    chosen = [argument for lock in locks for argument in ("-r", str(lock))]
    has_index = kind == "cpu" and reachable(f"{PYTORCH_INDEX}/torch/")
    if has_index:
        # PyPI's torchvision is a CUDA build. It works, too (serve_app/vllm_patches); the one from here needs no help.
        chosen = ["--extra-index-url", PYTORCH_INDEX, *chosen]
    try:
        pip(python, "--no-deps", "--require-hashes", *chosen)
    except CannotInstall as error:
        if kind == "cpu" and not has_index and "torch" in str(error):
            raise CannotInstall(f"{error}\n{PYTORCH_INDEX} does not answer either; is there a network?") from error
        raise


def reachable(url: str) -> bool:
    """Whether the address answers within a few seconds."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


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
