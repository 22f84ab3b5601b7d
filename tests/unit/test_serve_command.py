"""`make serve`: says what happens, fails with the replica's own error, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from serve_app.cli import client_env, serve, serve_api, serve_child, serve_status
from serve_app.cli.client_env import Endpoint
from serve_app.cli.serve_api import ApplicationDetails, StatusUnknown
from serve_app.config import deployment
from serve_app.config.deployment import Deployment
from serve_app.config.profile import ROOT

STAND_IN = Path(__file__).with_name("stand_in_serve.py")

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
\x1b[36mray::ServeReplica:step:engine\x1b[39m (pid=1)
Traceback (most recent call last):
  File "x.py", line 3, in __init__
    raise EngineDead("no")
serve_app.engine.contract.EngineDead: the engine did not start: out of memory
  (a hint on a second line)
"""


def state(
    status: str, engine: str, *, message: str = "", replicas: tuple[str, ...] = ("STARTING",)
) -> dict[str, object]:
    part = {"status": engine, "message": message, "replicas": [{"state": name} for name in replicas]}
    return {"applications": {"step": {"status": status, "message": "", "deployments": {"engine": part}}}}


DEPLOYING = state("DEPLOYING", "UPDATING")
RUNNING = state("RUNNING", "HEALTHY", replicas=("RUNNING",))
FAILED = state("DEPLOY_FAILED", "DEPLOY_FAILED", message=TRACEBACK, replicas=())


# ---- what Serve says -------------------------------------------------------------------------------------------------


def read(details: object) -> ApplicationDetails:
    return serve_api.decode(json.dumps(details).encode()).applications["step"]


def test_changes_are_told_once() -> None:
    before, after = read(DEPLOYING), read(RUNNING)
    assert serve_status.changes(ApplicationDetails(), before) == [
        "engine   updating (1 starting)",
        "all      deploying",
    ]
    assert serve_status.changes(before, after) == ["engine   healthy (1 running)", "all      running"]
    assert serve_status.changes(after, after) == []


@pytest.mark.parametrize(
    ("details", "settled"),
    [
        (RUNNING, True),
        (DEPLOYING, False),
        (FAILED, False),
        (state("RUNNING", "UPDATING", replicas=("RUNNING",)), False),
        (state("RUNNING", "UNHEALTHY", replicas=("RUNNING",)), False),
        (state("DEPLOYING", "HEALTHY", replicas=("RUNNING",)), False),
    ],
)
def test_only_where_all_is_well_is_it_asked_seldom(details: object, settled: bool) -> None:
    assert serve_status.is_settled(read(details)) is settled


@pytest.mark.parametrize("body", [b"null", b"[1]", b"no JSON", b'{"applications": 1}'])
def test_an_answer_that_is_not_serves_is_refused(body: bytes) -> None:
    with pytest.raises(StatusUnknown, match="unexpected answer"):
        serve_api.decode(body)


def test_fields_that_are_missing_null_or_unknown_do_not_matter() -> None:
    replica = {"replica_id": "a", "state": "STARTING", "pid": None, "node_ip": None, "log_file_path": "x"}
    engine = {"message": None, "replicas": [replica, {}], "autoscaling_detail": None, "route": "/"}
    details = read({"applications": {"step": {"deployments": {"engine": engine}}}, "controller_info": {"pid": 1}})
    assert details.status == serve_api.NOT_STARTED
    assert [one.replica_id for one in details.deployments["engine"].replicas] == ["a", ""]


def test_the_reader_has_the_fields_of_serves_own_schema() -> None:
    from ray.serve import schema

    theirs = (schema.ServeInstanceDetails, schema.ApplicationDetails, schema.DeploymentDetails, schema.ReplicaDetails)
    ours = (serve_api.ServeDetails, ApplicationDetails, serve_api.DeploymentDetails, serve_api.ReplicaDetails)
    for their, our in zip(theirs, ours, strict=True):
        assert set(our.__struct_fields__) <= set(their.model_fields)


def test_the_replicas_own_error_is_found_without_colours() -> None:
    error = serve_status.error_of(read(FAILED))
    assert "out of memory" in error
    assert "\x1b" not in error


def test_the_first_failed_try_is_told_before_serve_gives_up() -> None:
    message = "The deployment failed to start 1 times in a row. Retrying. Error:\nValueError: no"
    assert serve_status.error_of(read(state("DEPLOYING", "UPDATING", message=message))) == message
    assert serve_status.error_of(read(state("DEPLOYING", "UPDATING", message="busy"))) == ""


def test_the_essence_of_a_traceback_is_its_last_exception() -> None:
    essence = "serve_app.engine.contract.EngineDead: the engine did not start: out of memory\n(a hint on a second line)"
    assert serve_status.essence(serve_status.plain(TRACEBACK)) == essence
    assert serve_status.essence("") == ""
    assert serve_status.essence("just words") == "just words"


def test_a_replicas_progress_is_read_off_its_log() -> None:
    line = '(ServeReplica:step:engine pid=12) INFO serve_app.engine.replica: up {"replica":"a","phase":"loading (3 s)"}'
    assert serve_status.progress_in(line) == "engine   loading (3 s)"
    assert serve_status.progress_in(line.replace("phase", "fase")) is None
    assert serve_status.progress_in('{"phase": "x"}') is None


# ---- what a person reads ---------------------------------------------------------------------------------------------


def test_the_welcome_has_address_model_and_lines_to_paste() -> None:
    text = client_env.banner(Endpoint("0.0.0.0", 8000, "m", needs_key=False), "http://127.0.0.1:8265")
    for part in (
        "Serving m at http://127.0.0.1:8000",
        "curl http://127.0.0.1:8000/v1/chat/completions",
        'openai.OpenAI(base_url="http://127.0.0.1:8000/v1"',
        'anthropic.Anthropic(base_url="http://127.0.0.1:8000"',
        "client-env claude",
        "Ray dashboard  http://127.0.0.1:8265",
    ):
        assert part in text
    assert "Authorization" not in text
    assert "Authorization: Bearer YOUR-KEY" in client_env.banner(Endpoint("0.0.0.0", 8000, "m", needs_key=True), None)


def test_the_curl_line_is_one_that_a_shell_and_json_can_read() -> None:
    import shlex

    text = client_env.banner(Endpoint("0.0.0.0", 8000, "m", needs_key=True), None)
    line = next(line for line in text.splitlines() if line.strip().startswith("curl http"))
    words = shlex.split(line)
    assert json.loads(words[words.index("-d") + 1])["model"] == "m"


# ---- the whole run, with a stand-in for `serve run` ------------------------------------------------------------------


@pytest.fixture
def deploy() -> Deployment:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return replace(deployment.read(ROOT / "deploy.yaml"), host="127.0.0.1", port=port)


class Terminal:
    """What was said; on a word, does what a person would."""

    def __init__(self, word: str = "", then: int | None = None) -> None:
        self.lines: list[str] = []
        self._word, self._then = word, then

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if self._then is not None and self._word in line:
            os.kill(os.getpid(), self._then)
            self._then = None

    def text(self) -> str:
        return "\n".join(self.lines)


async def run(deploy: Deployment, states: object, log: Path, say: Terminal) -> int:
    command = [sys.executable, str(STAND_IN), str(deploy.port), json.dumps(states)]
    async with asyncio.timeout(60):
        return await serve.run(deploy, command, owns_ray=True, log=log, say=say)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(serve_child, "KILL_S", 0.3)
    return tmp_path / "serve.log"


def daemon_lives(log: Path) -> bool:
    match = re.search(r"daemon (\d+)", log.read_text())
    assert match is not None
    try:
        return psutil.Process(int(match.group(1))).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_tells_the_start_and_the_address_and_leaves_nothing_behind(
    deploy: Deployment, log: Path, number: signal.Signals
) -> None:
    say = Terminal("Serving", number)
    assert await run(deploy, [{}, DEPLOYING, RUNNING], log, say) == 0
    told = say.text()
    for part in ("engine   updating (1 starting)", "engine   loading weights (3 s)", "engine   healthy (1 running)"):
        assert part in told
    assert f"Serving the-model at http://127.0.0.1:{deploy.port}" in told
    assert told.endswith("Stopped.")
    assert not daemon_lives(log)


@pytest.mark.slow
async def test_a_deployment_that_fails_later_ends_it_with_the_replicas_own_error(deploy: Deployment, log: Path) -> None:
    say = Terminal()
    assert await run(deploy, [DEPLOYING, FAILED], log, say) == 1
    assert "FAILED: serve_app.engine.contract.EngineDead: the engine did not start: out of memory" in say.text()
    assert 'raise EngineDead("no")' in say.text()
    assert not daemon_lives(log)


async def test_a_serve_run_that_ends_by_itself_is_quoted(deploy: Deployment, log: Path) -> None:
    say = Terminal()
    assert await run(deploy, ["dies"], log, say) == 1
    assert "no room at the inn" in say.text()
    assert not daemon_lives(log)


@pytest.mark.slow
async def test_ctrl_c_while_it_starts_leaves_nothing_behind(deploy: Deployment, log: Path) -> None:
    say = Terminal("updating", signal.SIGINT)
    assert await run(deploy, [DEPLOYING], log, say) == 0
    assert "Serving" not in say.text()
    assert not daemon_lives(log)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_serve_run_is_told_to_start_a_ray_of_its_own_unless_one_runs() -> None:
    assert serve.serve_command(Path("deploy.yaml"), None)[1:4] == ["run", "--address", "local"]
    assert serve.serve_command(Path("deploy.yaml"), "10.0.0.1:6379")[3] == "10.0.0.1:6379"
    assert shutil.which(serve.serve_command(Path("x"), None)[0])
