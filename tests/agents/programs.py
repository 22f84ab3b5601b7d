"""The agents, each run headless in a home of its own, with exactly what `client-env` prints."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.cli.client_env import Endpoint, setup_for
from tests.agents import install

RUN_TIMEOUT_S = 120
MODEL_NAME = "step3p7-flash"


@dataclass(frozen=True)
class Program:
    """One agent. `command` makes the arguments of a task; `config_file` is where its configuration goes, if it is no
    shell text."""

    name: str
    bin_folder: Callable[[], Path]
    command: Callable[[str], Sequence[str]]
    config_file: str | None = None
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    status: int
    output: str
    errors: str


def _claude(task: str) -> list[str]:
    return ["claude", "-p", task, "--dangerously-skip-permissions", "--output-format", "text"]


def _codex(task: str) -> list[str]:
    return ["codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", task]


def _opencode(task: str) -> list[str]:
    return ["opencode", "run", "--auto", task]


def _aider(task: str) -> list[str]:
    return [
        *("aider", "--yes-always", "--no-git", "--edit-format", "diff", "--no-show-release-notes"),
        *("--auto-test", "--test-cmd", "python3 check.py", "--message", task, "hello.py"),
    ]


def _mini(task: str) -> list[str]:
    return ["mini", "--yolo", "--exit-immediately", "--cost-limit", "0", "--task", task, "--output", "trajectory.json"]


CLAUDE = Program(
    "claude",
    install.npm_programs,
    _claude,
    # It refuses to skip permissions as root, unless it is told that somebody else confines it.
    environment=(("IS_SANDBOX", "1"),),
)
CODEX = Program("codex", install.npm_programs, _codex, ".codex/config.toml")
OPENCODE = Program(
    "opencode",
    install.npm_programs,
    _opencode,
    ".config/opencode/opencode.json",
    # It would read the list of all models from the internet, and a language server of its own.
    environment=(("OPENCODE_DISABLE_MODELS_FETCH", "1"), ("OPENCODE_DISABLE_LSP_DOWNLOAD", "1")),
)
AIDER = Program("aider", lambda: install.pip_programs("aider"), _aider)
MINI = Program("mini-swe-agent", lambda: install.pip_programs("mini-swe-agent"), _mini)
PROGRAMS = (CLAUDE, CODEX, OPENCODE, AIDER, MINI)


@dataclass(frozen=True)
class Workplace:
    """Where an agent lives and works. It sees nothing of the home of whoever runs the tests."""

    home: Path
    work: Path

    @classmethod
    def below(cls, folder: Path) -> Workplace:
        """A new one, with a file to be edited."""
        place = cls(folder / "home", folder / "work")
        place.home.mkdir()
        place.work.mkdir()
        (place.work / "hello.py").write_text('print("one")\n')
        (place.work / "check.py").write_text('assert "two" in open("hello.py").read(), "hello.py must print two"\n')
        return place

    async def run(self, program: Program, url: str, task: str, context_tokens: int = 200_000) -> Ran:
        """Run a program on a task to its end."""
        endpoint = Endpoint("127.0.0.1", 0, MODEL_NAME, needs_key=False, context_tokens=context_tokens)
        setup = setup_for(program.name, endpoint, url, None).text
        if program.config_file is not None:
            file = self.home / program.config_file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(setup)
            setup = ""
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f'{setup}\nexec "$@"', "sh", *program.command(task)),
            cwd=self.work,
            env=self._environment(program),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return Ran(process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace"))

    def _environment(self, program: Program) -> dict[str, str]:
        return {
            "PATH": f"{program.bin_folder()}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "NO_COLOR": "1",
            **dict(program.environment),
        }
