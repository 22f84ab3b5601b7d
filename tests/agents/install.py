"""Puts the programs of this folder under `build/agents/`: what `npm/` locks, and each list of `pip/` in its own venv.
So are the client libraries: `pip/libraries.txt` and `npm-libraries/`.

They never go into the service's environment. What is there already, by the fingerprint of its list, is used as it is.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "agents"
INSTALL_TIMEOUT_S = 900
LINK_BINARIES = ("@anthropic-ai/claude-code/install.cjs", "opencode-ai/postinstall.mjs")
"""The install scripts that are run, and no others: each puts the platform's binary in its program's place."""
QUIET = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_RETRIES": "1"}


class CannotInstall(Exception):
    """The message says why; the tests that need the program are skipped with it."""


def npm_programs() -> Path:
    """The folder with the npm programs' commands."""
    return _npm("npm", LINK_BINARIES) / "node_modules" / ".bin"


def npm_libraries() -> Path:
    """The folder whose `node_modules` has the npm libraries: a script finds them from there."""
    return _npm("npm-libraries", ())


def _npm(name: str, scripts: tuple[str, ...]) -> Path:
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise CannotInstall("node and npm are not installed")
    files = [HERE / name / file for file in ("package.json", "package-lock.json")]
    folder = _folder(name, files)

    def install() -> None:
        for file in files:
            shutil.copy(file, folder)
        # Not `npm ci`: that wants every platform's binaries in the lock, and registries do not all have all of them.
        _run("npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
        for script in scripts:
            place = folder / "node_modules" / script
            _run("node", place.name, cwd=place.parent)

    _once(folder, install)
    return folder


def pip_programs(name: str) -> Path:
    """The folder with the commands of the environment that `pip/<name>.txt` lists."""
    requirements = HERE / "pip" / f"{name}.txt"
    folder = _folder(name, [requirements])

    def install() -> None:
        _run(sys.executable, "-m", "venv", str(folder), cwd=BUILD)
        python = str(folder / "bin" / "python")
        _run(python, "-m", "pip", "install", "-q", "--no-deps", "-r", str(requirements), cwd=BUILD)

    _once(folder, install)
    return folder / "bin"


def _folder(name: str, lists: list[Path]) -> Path:
    digest = hashlib.sha256(str(sys.version_info[:2]).encode())
    for file in lists:
        digest.update(file.read_bytes())
    return BUILD / f"{name}-{digest.hexdigest()[:12]}"


def _once(folder: Path, install: Callable[[], None]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "installed").is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        install()
        (folder / "installed").touch()


def _run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=cwd, env=QUIET, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"{command[0]} took longer than {INSTALL_TIMEOUT_S} s") from None
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[:3]
        raise CannotInstall(f"{Path(command[0]).name} failed, is a registry within reach? {' '.join(last)}")


def main() -> None:
    """Install everything, before tests whose time is limited. What cannot be had is said, and its tests are skipped."""
    names = sorted(file.stem for file in (HERE / "pip").glob("*.txt"))
    for program in (npm_programs, npm_libraries, *(functools.partial(pip_programs, name) for name in names)):
        try:
            program()
        except CannotInstall as reason:
            print(f"agents: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
