"""`make serve` for real, with the fake engine: it comes up, says so, and leaves nothing behind; a failed start says
why."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.config import machine
from serve_app.config.profile import ROOT
from tests.ray.cluster import OWN_PORTS, fake_engine, free_ports, serve_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DEADLINE_S = 280.0


class Command:
    """A running `python -m serve_app serve`, and the mark of everything that it starts."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[str] = []

    async def until_said(self, words: str) -> str:
        """The first line with these words."""
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            self.said.append(raw.decode().rstrip())
            if words in self.said[-1]:
                return self.said[-1]
        raise AssertionError("\n".join(["it ended without saying so:", *self.said]))

    async def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        os.kill(self._process.pid, signal.SIGINT)
        await self.until_said("Stopped")
        return await self._process.wait()

    def left(self) -> list[int]:
        """Processes of this run that are still there."""
        pid = str(self._process.pid)
        return [process.pid for process, mark in machine.marked() if mark.split("-")[0] == pid]


@asynccontextmanager
async def serve(file: Path) -> AsyncIterator[Command]:
    """Start it. Its Ray is its own, in a folder of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    env |= {"RAY_TMPDIR": str(file.parent), "HF_HUB_OFFLINE": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serve_app", "serve", "--file", str(file), cwd=ROOT, env=env, stdout=-1, stderr=-2
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield Command(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        await process.communicate()


def deploy_file(folder: Path, port: int, own: Sequence[int], fake: Mapping[str, object]) -> Path:
    document = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    (application,) = document["applications"]
    document["http_options"]["port"] = port
    for part in (document["controller_options"], application):
        part["runtime_env"]["env_vars"] = {**part["runtime_env"]["env_vars"], **serve_ports(own)}
    application["args"] = {"profile": "cpu-demo", "engine": {"kind": "fake", "fake": dict(fake)}}
    file = folder / "deploy.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short: Ray's sockets lie in it, and their paths may have 107 characters."""
    return tmp_path_factory.mktemp("s")


async def test_it_comes_up_says_so_and_leaves_nothing_behind(folder: Path) -> None:
    port, *own = free_ports(1 + OWN_PORTS)
    async with serve(deploy_file(folder, port, own, fake_engine())) as command:
        await command.until_said(f"Serving step3p7-flash at http://127.0.0.1:{port}")
        async with httpx.AsyncClient(trust_env=False) as client:
            asked = {
                "model": "step3p7-flash",
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 20,
            }
            answer = await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, timeout=60)
        assert answer.status_code == 200
        assert len(command.left()) > 5
        assert await command.interrupt() == 0
        assert command.left() == []
        assert machine.port_holder("0.0.0.0", port) is None


async def test_an_engine_that_cannot_start_ends_it_with_the_engines_own_error(folder: Path) -> None:
    port, *own = free_ports(1 + OWN_PORTS)
    fake = {"script": [{"turns": [{"say": "Hello"}]}], "tokenizer": "no_such_tokenizer"}  # read by the replica only
    async with serve(deploy_file(folder, port, own, fake)) as command:
        assert "no_such_tokenizer" in await command.until_said("FAILED:")
        await command.until_said("Stopped")
        assert command.left() == []
