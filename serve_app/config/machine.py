"""Facts of this machine: ports and their holders, our processes, versions, free memory and disk.

Processes of one `make serve` carry a mark in their environment (`RUN_MARK`), which Ray's daemons, their workers and
HAProxy all inherit. Process names would not do: another Ray may run here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

RUN_MARK = "STEP_SERVE_RUN"
"""Environment variable that names the run a process belongs to."""

_RAY_DAEMONS = ("raylet", "gcs_server")


@dataclass(frozen=True)
class Holder:
    """A process that listens on a port, as far as we can see it."""

    pid: int | None
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command})" if self.pid else self.command


def port_holder(host: str, port: int) -> Holder | None:
    """The process that keeps us from listening on the port, or None. Tries to bind, as the server will."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of an earlier run in TIME_WAIT must not count: servers bind past them too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror
        else:
            return None
    for connection in _listening():
        if connection.laddr.port == port:
            return Holder(connection.pid, command_of(connection.pid))
    return Holder(None, f"{reason}; the process cannot be seen from here")


def _listening() -> list[psutil._common.sconn]:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # other users' sockets, without root
        connections = psutil.Process().net_connections(kind="tcp")
    return [connection for connection in connections if connection.status == psutil.CONN_LISTEN]


def command_of(pid: int | None) -> str:
    """The command line, short enough for one line of output."""
    if pid is None:
        return "a process of another user"
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return "a process of another user"
    text = " ".join([Path(words[0]).name, *words[1:]]) if words else "?"
    return text if len(text) <= 80 else text[:77] + "..."  # a line's worth


@dataclass(frozen=True)
class StaleProcess:
    """A process of an earlier run whose launcher is gone."""

    pid: int
    command: str


def new_run_mark() -> str:
    """A mark for the processes that this process is about to start: its pid and its start time, because pids are
    reused.

    More may follow after another dash.
    """
    me = psutil.Process()
    return f"{me.pid}-{me.create_time():.2f}"


def _launcher_lives(mark: str) -> bool:
    pid, began, *_ = [*mark.split("-"), ""]
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == began
    except (psutil.Error, ValueError):
        return False


def processes_of(run: str) -> list[psutil.Process]:
    """Every process that carries this run's mark, except the caller."""
    return [process for process, mark in marked() if mark == run]


def stale_processes() -> list[StaleProcess]:
    """Processes of earlier runs that outlived their launcher."""
    found = []
    for process, mark in marked():
        if not _launcher_lives(mark):
            found.append(StaleProcess(process.pid, command_of(process.pid)))
    return found


def marked() -> Iterator[tuple[psutil.Process, str]]:
    """Every process with any run's mark, except the caller."""
    me = psutil.Process().pid
    for process in psutil.process_iter():
        if process.pid == me:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(RUN_MARK)
            if mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process, mark


def orphaned_proxies() -> list[StaleProcess]:
    """HAProxy processes of a Ray Serve whose Ray is gone: `ray stop` leaves them alive, and they keep the port."""
    names: dict[int, str] = {}
    proxies = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            names[process.pid] = process.name()
            if process.name() == "haproxy" and any("haproxy-serve" in word for word in process.cmdline()):
                proxies.append(process)
    if any(name in _RAY_DAEMONS for name in names.values()):
        return []  # some Ray lives: they may well be its own
    return [StaleProcess(process.pid, command_of(process.pid)) for process in proxies]


def version_of(distributions: Sequence[str]) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def ray_folder() -> Path:
    """Where Ray keeps its sessions: its own rule."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"  # noqa: S108  # Ray's choice


def running_ray() -> str | None:
    """The Ray cluster that `serve run` would join: RAY_ADDRESS, or the one that `ray start` left running on this
    machine.

    Ray itself trusts the file that `ray start` writes, which a crashed Ray leaves behind: so the address is tried.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return None if address == "local" else address
    file = ray_folder() / "ray_current_cluster"
    if not file.is_file():
        return None
    address = file.read_text(encoding="utf-8").strip()
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return None
    return address


def free_bytes(path: Path) -> int:
    """Free bytes on the file system that holds the path, or would hold it."""
    while not path.exists():
        path = path.parent
    return int(psutil.disk_usage(str(path)).free)
