"""The options of a run, checked before anything is done.

A run kills processes. So it needs `--yes` where the endpoint is not on this machine.
"""

from __future__ import annotations

import argparse
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psutil

from chaos.changes import ROLLING, Change
from chaos.request_spec import ChaosApi, PromptKind

E = TypeVar("E", bound=Enum)


class BadOptions(Exception):
    """The command line cannot work. The message says what to give instead."""


class Fault(Enum):
    """What happens to a replica, by its name in `--fault`."""

    KILL = "kill"
    KILL_ENGINE = "kill-engine"
    HANG = "hang"
    SLOW = "slow"
    CUT = "cut"
    UPGRADE = "upgrade"
    ROLLING = "rolling"
    DRAIN_NODE = "drain-node"
    NONE = "none"


ENDS_REPLICA = frozenset({Fault.KILL, Fault.KILL_ENGINE, Fault.HANG, Fault.CUT})
"""Faults after which Serve must replace the replica."""

IN_CLOSED_LOOP = frozenset({Fault.NONE, Fault.UPGRADE, Fault.ROLLING, Fault.DRAIN_NODE})
"""Faults for which the clients may run in a closed loop (`--requests`)."""


@dataclass(frozen=True)
class ChaosOptions:
    """One run."""

    url: str
    dashboard: str
    application: str
    fault: Fault
    apis: tuple[ChaosApi, ...]
    kinds: tuple[PromptKind, ...]
    streams: int
    concurrency: int
    faults: int | None
    """None: one in every round."""
    at_token: int | None
    """None: a random one."""
    min_up: int | None
    """Engine replicas that must run before the next fault; None: all."""
    tokens: tuple[int, int]
    distinct: int | None
    """Different requests; each has a baseline."""
    seed: int
    slow_s: float
    deadline_s: float
    recover_s: float
    requests: int | None
    """Requests of a closed loop; None: rounds."""
    changes: tuple[Change, ...]
    """Of a closed loop, one after the other."""
    pause_s: float
    """Of a closed loop: the longest pause of every fourth client between two requests."""
    node_deadline_s: float
    """Of `Change.DRAIN_NODE`: how long before it goes a node is drained."""
    long_tokens: int
    settle_s: float
    key: str | None
    model: str | None
    ray_address: str | None
    json_file: Path | None

    @property
    def distinct_requests(self) -> int:
        """How many different requests there are: enough that no two of a round are the same."""
        total = self.streams if self.requests is None else self.requests
        return min(total, self.distinct or 2 * self.concurrency)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="endpoint (default %(default)s)")
    add("--dashboard", default="http://127.0.0.1:8265", help="Ray's dashboard (default %(default)s)")
    add("--fault", choices=[fault.value for fault in Fault], default="kill", help="what happens (default kill)")
    add("--apis", default="chat,completions,messages,responses", help="mixed in turn (default %(default)s)")
    add("--kinds", default="text", help=f"of {','.join(kind.value for kind in PromptKind)} (default text)")
    add("--streams", type=int, default=200, help="streams in all rounds together (default 200)")
    add("--concurrency", type=int, default=32, help="streams at a time: of a round (default 32)")
    add("--faults", type=int, help="faults in all rounds together (default: one in each)")
    add("--min-up", type=int, metavar="N", help="inject the next fault when N engines run again (default: all)")
    add("--at-token", default="random", help="token of one of the streams at which to inject (default random)")
    add("--tokens", default="40-200", help="length of the answers, SHORTEST-LONGEST (default 40-200)")
    add("--distinct", type=int, help="different requests (default: twice the concurrency)")
    add("--seed", type=int, default=0, help="repeats requests, tokens and order of replicas (default 0)")
    add("--slow-s", type=float, default=10.0, help="duration of --fault slow (default 10)")
    add("--deadline-s", type=float, default=300.0, help="longest time for a stream (default 300)")
    add("--recover-s", type=float, default=300.0, help="longest time for the fleet to recover (default 300)")
    add(
        "--requests",
        type=int,
        metavar="N",
        help="a closed loop of N requests instead of rounds; with --fault none, upgrade, rolling or drain-node",
    )
    add("--drains", type=int, default=1, help="nodes to drain in a closed loop, one after the other (default 1)")
    add("--node-deadline-s", type=float, default=120.0, help="how long a drained node stays (default 120)")
    add("--upgrades", type=int, default=2, help="upgrades in a closed loop (default 2)")
    add(
        "--changes",
        default=",".join(change.value for change in ROLLING),
        help="of --fault rolling (default %(default)s)",
    )
    add("--pause-s", type=float, default=40.0, help="closed loop: longest pause of every fourth client (default 40)")
    add("--long-tokens", type=int, default=0, help="closed loop: tokens of every twentieth answer (default: --tokens)")
    add("--settle-s", type=float, default=120.0, help="closed loop: longest wait for scale-down (default 120)")
    add("--application", default="step", help="Serve application (default step)")
    add("--key", help="API key, if the endpoint requires one")
    add("--model", help="served name (default: the first of /v1/models)")
    add("--ray-address", help="HOST:PORT of Ray's GCS (default: that of the local replicas, or RAY_ADDRESS)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--yes", action="store_true", help="allow an endpoint that is not on this machine")


def read(given: argparse.Namespace) -> ChaosOptions:
    """Check the flags. Raises `BadOptions`."""
    fault, tokens, at_token = Fault(given.fault), _range(given.tokens), _at_token(given.at_token)
    _check(given, fault)
    if at_token is not None and at_token >= tokens[1]:
        raise BadOptions(f"--at-token {at_token}: no answer of --tokens {given.tokens} continues after it")
    return ChaosOptions(
        url=given.url.rstrip("/").removesuffix("/v1"),
        dashboard=given.dashboard.rstrip("/"),
        application=given.application,
        fault=fault,
        apis=tuple(_choice(ChaosApi, name, "--apis") for name in given.apis.split(",")),
        kinds=tuple(_choice(PromptKind, name, "--kinds") for name in given.kinds.split(",")),
        streams=given.streams,
        concurrency=given.concurrency,
        faults=given.faults,
        at_token=at_token,
        min_up=given.min_up,
        tokens=tokens,
        distinct=given.distinct,
        seed=given.seed,
        slow_s=given.slow_s,
        deadline_s=given.deadline_s,
        recover_s=given.recover_s,
        requests=given.requests,
        changes=_changes(given, fault),
        node_deadline_s=given.node_deadline_s,
        pause_s=given.pause_s,
        long_tokens=given.long_tokens,
        settle_s=given.settle_s,
        key=given.key,
        model=given.model,
        ray_address=given.ray_address,
        json_file=given.json,
    )


def _check(given: argparse.Namespace, fault: Fault) -> None:
    for name in ("streams", "concurrency", "distinct", "requests", "faults", "drains"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise BadOptions(f"--{name} {value}: give a number of at least 1")
    if not given.yes and not is_here(given.url):
        raise BadOptions(
            f"{given.url} is not on this machine, and this command ends processes that serve others. "
            "Add --yes if you want that"
        )
    if given.requests is None and fault in (Fault.NONE, Fault.ROLLING, Fault.DRAIN_NODE):
        raise BadOptions(f"--fault {fault.value} is for a closed loop: give --requests N, or another fault")
    if given.requests is not None and fault not in IN_CLOSED_LOOP:
        raise BadOptions(
            f"--requests runs a closed loop: give --fault none, upgrade, rolling or drain-node instead of {fault.value}"
        )
    if given.min_up is not None and (given.min_up < 2 or given.requests is not None or fault not in ENDS_REPLICA):
        raise BadOptions(
            f"--min-up {given.min_up}: give at least 2 (one gets the fault, one takes over its streams), and a fault "
            f"that ends a replica ({', '.join(sorted(fault.value for fault in ENDS_REPLICA))})"
        )
    if given.faults is not None and given.faults > given.streams:
        raise BadOptions(f"--faults {given.faults} is more than --streams {given.streams}: a stream gets at most one")


def _changes(given: argparse.Namespace, fault: Fault) -> tuple[Change, ...]:
    if fault is Fault.ROLLING:
        return tuple(_choice(Change, name, "--changes") for name in given.changes.split(","))
    counts = {Fault.DRAIN_NODE: (Change.DRAIN_NODE, given.drains), Fault.UPGRADE: (Change.UPGRADE, given.upgrades)}
    change, count = counts.get(fault, (Change.UPGRADE, 0))
    return tuple(change for _ in range(count))


def _choice(kind: type[E], name: str, flag: str) -> E:
    try:
        return kind(name.strip())
    except ValueError:
        choices = ", ".join(str(member.value) for member in kind)
        raise BadOptions(f"{flag}: unknown {name.strip()!r}; choose from {choices}") from None


def _at_token(text: str) -> int | None:
    if text == "random":
        return None
    if not text.isdigit() or int(text) < 1:
        raise BadOptions(f"--at-token {text}: give `random`, or a number of at least 1")
    return int(text)


def _range(text: str) -> tuple[int, int]:
    shortest, _, longest = text.partition("-")
    if not (shortest.isdigit() and longest.isdigit() and 2 <= int(shortest) <= int(longest)):
        raise BadOptions(f"--tokens {text}: give SHORTEST-LONGEST, for example 40-200, of at least 2")
    return int(shortest), int(longest)


def is_here(url: str) -> bool:
    """Whether the URL's host is this machine. A name that cannot be resolved is not."""
    host = urlsplit(url if "://" in url else f"http://{url}").hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return found <= own_addresses()


def own_addresses() -> frozenset[str]:
    """The addresses of this machine's interfaces."""
    return frozenset(
        address.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for address in addresses
    )
