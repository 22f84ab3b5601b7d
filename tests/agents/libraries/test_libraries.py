"""Client libraries as their users call them. Each script of `clients/` runs in a process of its own and prints one JSON
object; `expected/` has what it says, to the letter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.install import CannotInstall, npm_libraries, pip_programs
from tests.agents.libraries.background import background_service

pytestmark = pytest.mark.agents

HERE = Path(__file__).parent
CLIENT_TIMEOUT_S = 240
SCRIPTS = sorted(file.stem for file in (HERE / "expected").glob("*.json"))

NO_TELEMETRY = {
    "ANONYMIZED_TELEMETRY": "false",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
}
"""Nothing in these tests talks to anybody but the service."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One service for all scripts."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with background_service() as address:
            yield address


def run_client(name: str, url: str, home: Path) -> Any:
    """What the script says."""
    script = HERE / "clients" / f"{name}.py"
    try:
        if script.is_file():
            command = [str(pip_programs("libraries") / "python"), str(script)]
        else:
            command = ["node", str(_beside_node_modules(HERE / "clients" / f"{name}.mjs", home))]
    except CannotInstall as reason:
        pytest.skip(f"{name}: {reason}")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "SERVICE_URL": url, **NO_TELEMETRY}
    done = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=CLIENT_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def _beside_node_modules(script: Path, home: Path) -> Path:
    """A copy of the script where Node finds the libraries."""
    (home / "node_modules").symlink_to(npm_libraries() / "node_modules")
    return Path(shutil.copy(script, home))


def test_every_script_has_what_it_should_say() -> None:
    scripts = {file.stem for file in (HERE / "clients").iterdir() if file.suffix in (".py", ".mjs")} - {"common"}
    assert scripts == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_library_gets_from_the_service_what_its_users_expect(name: str, url: str, tmp_path: Path) -> None:
    assert run_client(name, url, tmp_path) == json.loads((HERE / "expected" / f"{name}.json").read_text())
