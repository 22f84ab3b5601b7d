"""Several nodes on one machine: each in a network namespace of its own, with an address of its own, on a bridge."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Self

from tests.ray.cluster import Node


class Network:
    """Use as a context manager: on leaving it, its namespaces and its bridge are gone."""

    def __init__(self) -> None:
        # Not by process: the kernel takes a namespace apart after `ip netns del` has returned, and the next network of
        # this process would find a name still taken.
        self._name = f"sr{secrets.token_hex(3)}"
        self._subnet = f"10.78.{os.getpid() % 250}"
        self._nodes: list[str] = []

    def __enter__(self) -> Self:
        _ip("link", "add", self._name, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self._name)
        _ip("link", "set", self._name, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._nodes:
            _end_all_in(name)  # a namespace lives as long as a process in it, and its cable with it
            with contextlib.suppress(subprocess.CalledProcessError):  # it had not come as far as to have one
                _ip("link", "del", _outside(name))
            _ip("netns", "del", name)
        _ip("link", "del", self._name)

    @property
    def gateway(self) -> str:
        """This machine's own address, as the nodes see it."""
        return f"{self._subnet}.254"

    def add_node(self) -> Node:
        """A new machine, as far as addresses and ports go."""
        number = len(self._nodes) + 1
        name, address = f"{self._name}n{number}", f"{self._subnet}.{number}"
        outside = _outside(name)
        _ip("netns", "add", name)
        self._nodes.append(name)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", outside, "master", self._name, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        return Node(address, ("ip", "netns", "exec", name))

    def pull_the_plug(self, node: Node) -> None:
        """End everything on a node at once, as a power cut does."""
        _end_all_in(node.prefix[-1])


def _outside(name: str) -> str:
    """The end of a namespace's cable that is on the bridge."""
    return f"{name}v"


def _end_all_in(name: str) -> None:
    while pids := _ip("netns", "pids", name).split():  # again, if something was being started
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def not_here() -> str | None:
    """Why this machine cannot have network namespaces of ours; None if it can."""
    if shutil.which("ip") is None:
        return "iproute2 (`ip`) is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with _trial():
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"


@contextlib.contextmanager
def _trial() -> Iterator[None]:
    with Network() as network:
        network.add_node()
        yield


def _ip(*words: str) -> str:
    try:
        return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20).stdout
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
