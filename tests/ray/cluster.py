"""A Ray of the tests' own, with Serve on it: started as users start it, looked into, and taken down by its mark.

Nothing here shares a port, a folder or a process with another Ray of this machine. What is started carries
`machine.RUN_MARK` in its environment, as what `make serve` starts does, and is ended by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil
import yaml

from serve_app.config import machine
from serve_app.config.profile import ROOT

T = TypeVar("T")

POLL_S = 0.1
API_ANSWERS_WITHIN_S = 120
"""As long as a head may be away in the tests."""
APPLICATION = "step"
BIN = Path(sys.executable).parent
TOKENIZER = ROOT / "models" / "step-tiny" / "tokenizer.json"


async def until(condition: Callable[[], Awaitable[T]], deadline_s: float, what: str) -> T:
    """Return what `condition` gives as soon as it is true. Fails after `deadline_s`, saying what was waited for."""
    last: object = None
    try:
        async with asyncio.timeout(deadline_s):
            while not (last := await condition()):  # noqa: ASYNC110  # it happens in processes that can set no event
                await asyncio.sleep(POLL_S)
            return last
    except TimeoutError:
        raise AssertionError(f"after {deadline_s:g} s still not: {what} (last seen: {last!r})") from None


FREE_PORTS = range(28_400, 32_768)
"""Below those that the system hands out to connections, above Ray's for its workers and those of `serve_ports`."""


def free_ports(count: int) -> list[int]:
    """Ports of `FREE_PORTS` that nobody listens on now.

    Draw all that one cluster needs at once: a port of one draw may come again in the next.
    """
    found: list[int] = []
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):  # not in order: another run of the tests draws, too
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


OWN_PORTS = 4


def serve_ports(free: Sequence[int]) -> dict[str, str]:
    """Where Serve listens besides its endpoint, with `OWN_PORTS` free ports. Away from the defaults: another Serve may
    run on this machine."""
    metrics, stats, fallback_http, fallback_grpc = free
    first = 20_000 + os.getpid() % 20 * 400  # below what the system hands out by itself
    return {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 100),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first + 200),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + 300),
    }


PATIENCE = {
    # Serve gives its proxies ten seconds for a sign of life and then starts them again; a busy machine needs longer.
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "90",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "90",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "90",
}


def token_ids() -> dict[str, int]:
    """The ids of the demo tokenizer's special tokens."""
    added = json.loads(TOKENIZER.read_text(encoding="utf-8"))["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def fake_engine(**changes: object) -> dict[str, object]:
    """A fake engine that speaks as the demo model's parsers expect: thoughts, the end of them, then an answer.

    Its words are capital letters (a byte-level tokenizer's first ids are the printable ASCII characters, in order), so
    that no token can be half a character or the beginning of a tool call.
    """
    special = token_ids()
    return {
        "plain_token_ids": [32, 57],
        "think_tokens": 6,
        "think_end_token_id": special["</think>"],
        "answer_tokens": [12, 24],
        "eos_token_id": special["<|im_end|>"],
        "gap_s": 0.01,
        **changes,
    }


@dataclass(frozen=True)
class Node:
    """Where a Ray node runs. `prefix` goes before each of its commands (`ip netns exec ...`)."""

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


class Cluster:
    """Use as a context manager: on leaving it nothing that it started is alive."""

    def __init__(self, head: Node, ray_env: Mapping[str, str] | None = None) -> None:
        self.head = head
        self.gcs_port, self.dashboard_port, self.http_port, *ports = free_ports(7 + OWN_PORTS)
        self.own_ports = serve_ports(ports[:OWN_PORTS])
        self._head_ports = ports[OWN_PORTS:]
        self.folder = Path(tempfile.mkdtemp(prefix="sr-"))
        self._mark = machine.new_run_mark() + f"-{self.folder.name}"
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))},
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",  # 15 by default: on a busy machine a start would take minutes
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            machine.RUN_MARK: self._mark,
            **(ray_env or {}),
        }
        self._serve: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_all(self._mark)
        if self._serve is not None:
            self._serve.wait()
        for process in self._started:
            process.communicate()  # its pipes are closed, and its end is noted
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- starting ----------------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where Ray's other processes find the cluster."""
        return f"{self.head.address}:{self.gcs_port}"

    def start_head(self, *options: str) -> None:
        """The head node, with its dashboard; again, after its end, on the same ports."""
        # Workers of this machine name the head in their command lines: with this file, `ray start` takes that for a
        # head that runs.
        (self.folder / "ray_current_cluster").unlink(missing_ok=True)
        client, agent, agent_grpc, metrics = self._head_ports
        self._start_node(
            self.head,
            "--head",
            f"--port={self.gcs_port}",
            f"--temp-dir={self.folder}",
            "--include-dashboard=true",
            f"--dashboard-host={self.head.address}",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}",
            *options,
        )
        self.metrics_url = f"http://{self.head.address}:{metrics}/metrics"

    def add_node(self, node: Node, *options: str) -> None:
        """A further node."""
        self._start_node(node, f"--address={self.address}", *options)

    def serve(self, args: Mapping[str, object], env: Mapping[str, str]) -> None:
        """`serve run` of the repository's deploy.yaml with these arguments, and these variables besides its own."""
        env = {**PATIENCE, **env}
        document = yaml.safe_load((ROOT / "deploy.yaml").read_text(encoding="utf-8"))
        (application,) = document["applications"]
        document["http_options"] = {"host": "0.0.0.0", "port": self.http_port}
        document["controller_options"]["runtime_env"]["env_vars"].update(env)
        application["runtime_env"]["env_vars"].update(env)
        application["args"] = dict(args)
        file = self.folder / "deploy.yaml"
        file.write_text(yaml.safe_dump(document), encoding="utf-8")
        self._env.update(env)
        with (self.folder / "serve.log").open("wb") as log:
            self._serve = subprocess.Popen(
                [*self.head.prefix, str(BIN / "serve"), "run", "--address", self.address, str(file)],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def popen(self, node: Node, *command: str) -> subprocess.Popen[str]:
        """A Python script on a node, with pipes; its errors go to a log of its name."""
        with (self.folder / f"{Path(command[1]).stem}.log").open("wb") as errors:
            process = subprocess.Popen(
                [*node.prefix, *command],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def _start_node(self, node: Node, *options: str) -> None:
        command = [*node.prefix, str(BIN / "ray"), "start", f"--node-ip-address={node.address}", *options]
        command += [
            "--disable-usage-stats",
            "--include-log-monitor=false",
            f"--object-store-memory={100 * 1024 * 1024}",
        ]
        started = subprocess.run(
            command, cwd=ROOT, env=self._env, capture_output=True, text=True, check=False, timeout=300
        )
        assert started.returncode == 0, started.stdout + started.stderr

    # ---- looking -----------------------------------------------------------------------------------------------------

    def url(self, node: Node | None = None) -> str:
        """The endpoint, as one node offers it."""
        return f"http://{(node or self.head).address}:{self.http_port}"

    async def replicas(self, deployment: str) -> list[dict[str, Any]]:
        """A deployment's running replicas as Serve's own API tells of them: `replica_id`, `pid`, `node_ip` ..."""
        return [one for one in await self.all_replicas(deployment) if one["state"] == "RUNNING"]

    async def all_replicas(self, deployment: str) -> list[dict[str, Any]]:
        """The same, those that start and stop included."""
        return (await self.deployments()).get(deployment, [])

    async def deployments(self) -> dict[str, list[dict[str, Any]]]:
        """The replicas of every deployment, all at one moment. Empty while Serve builds an application anew.

        A dashboard that does not answer is asked again: that must not be read as "no replicas".
        """
        status = await until(self._serve_status, API_ANSWERS_WITHIN_S, "an answer from Serve's API")
        application = status["applications"].get(APPLICATION, {})
        if application.get("status") == "DEPLOY_FAILED":
            raise AssertionError(application["message"] + self.last_words())
        return {name: one["replicas"] for name, one in application.get("deployments", {}).items()}

    async def _serve_status(self) -> dict[str, Any] | None:
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                answer = await client.get(
                    f"http://{self.head.address}:{self.dashboard_port}/api/serve/applications/", timeout=10
                )
                answer.raise_for_status()
            except httpx.HTTPError:
                return None
        status: dict[str, Any] = answer.json()
        return status

    async def until_replicas(self, deployment: str, count: int, deadline_s: float) -> list[dict[str, Any]]:
        """Wait until exactly so many replicas run."""

        async def running() -> list[dict[str, Any]]:
            if self._serve is not None and self._serve.poll() is not None:
                raise AssertionError("serve run has ended" + self.last_words())
            found = await self.replicas(deployment)
            return found if len(found) == count else []

        return await until(running, deadline_s, f"{count} replica(s) of {deployment}")

    async def until_answers(self, node: Node, deadline_s: float) -> None:
        """Wait until the endpoint on a node says that it can serve."""

        async def healthy() -> bool:
            async with httpx.AsyncClient(trust_env=False) as client:
                with contextlib.suppress(httpx.HTTPError):
                    return (await client.get(f"{self.url(node)}/health", timeout=5)).status_code == 200
            return False

        await until(healthy, deadline_s, f"an answer from {self.url(node)}")

    def last_words(self) -> str:
        """The end of what `serve run` has printed."""
        log = self.folder / "serve.log"
        return "\n" + log.read_text(encoding="utf-8", errors="replace")[-4000:] if log.is_file() else ""

    def logged(self, needle: str) -> list[str]:
        """The lines on the standard error of the cluster's workers with this text in them."""
        lines: list[str] = []
        for file in (self.folder / "session_latest" / "logs").glob("worker-*.err"):
            lines += [
                line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if needle in line
            ]
        return lines

    def controller_logged(self, needle: str) -> list[str]:
        """The lines in the log of Serve's controller with this text in them: it writes them nowhere else."""
        folder = self.folder / "session_latest" / "logs" / "serve"
        lines = [line for file in folder.glob("controller_[0-9]*.log") for line in file.read_text().splitlines()]
        return [line for line in lines if needle in line]


class Probe:
    """A process with a Serve handle of its own that asks the engine replicas for their load (`probe.py`)."""

    def __init__(self, cluster: Cluster) -> None:
        self._process = cluster.popen(
            cluster.head, sys.executable, str(Path(__file__).with_name("probe.py")), cluster.address
        )
        self._lock = threading.Lock()

    async def loads(self) -> list[dict[str, Any]]:
        """What each engine replica says of itself: `replica_id`, `running`, `waiting`, `unfinished`, `draining`."""
        return await asyncio.to_thread(self._ask)

    async def unfinished(self) -> int:
        """Requests that the engines hold, all together."""
        return sum(load["unfinished"] for load in await self.loads())

    def _ask(self) -> list[dict[str, Any]]:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith("["):
                    answer: list[dict[str, Any]] = json.loads(line)
                    return answer
        raise AssertionError("the probe has ended")


def end_all(mark: str) -> None:
    """End every process that carries the mark, HAProxy and Ray's daemons too. Nothing here is worth a graceful end."""
    while processes := machine.processes_of(mark):  # again, if one of them was starting another
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=5)


def kill(replicas: Sequence[Mapping[str, Any]]) -> None:
    """End these replicas' processes as a crash would."""
    for replica in replicas:
        os.kill(replica["pid"], signal.SIGKILL)
