"""Chooses the profile that the cluster's GPUs can hold.

`choose_profile` and `check_fit` are pure: the nodes' resources in, a choice or a refusal out. `cluster_nodes` asks Ray.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serve_app.config.replicas import ReplicasConfig
from serve_app.config.schema import AppConfig

CPU_PROFILE = "cpu-demo"


class NoProfileFits(Exception):
    """The cluster cannot hold the configuration. The message says what it has, what is needed, and what to change."""


@dataclass(frozen=True)
class NodeGpus:
    """What one node has, as Ray sees it. `accelerator` is Ray's name of its GPUs (`H100`), None where it has none."""

    node: str
    accelerator: str | None
    gpus: int
    cpus: float = math.inf
    gpu_bytes: int | None = None
    """Memory of its smallest GPU, as `nvidia-smi` shows it; None where it was not read."""
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    node_id: str = ""
    """Ray's id of it."""


@dataclass(frozen=True)
class ProfileGpus:
    """What a shipped profile needs on one node. `accelerators` are Ray's names of GPUs with that memory or more."""

    profile: str
    accelerators: tuple[str, ...]
    gpus: int


PROFILE_GPUS = (
    ProfileGpus("b200-x4", ("B200", "GB200", "B300", "GB300"), 4),
    ProfileGpus("h200-x8", ("H200",), 8),
    ProfileGpus("h200-x4", ("H200",), 4),
    ProfileGpus("h100-x8", ("H100",), 8),
    ProfileGpus("h100-x4-fp8", ("H100",), 4),
    ProfileGpus("a100-x8", ("A100", "A100-80G"), 8),
)
"""The profiles that `auto` chooses from, best first. `h100-x8-fp8` is for an explicit choice: it trades the weights'
precision for room."""


@dataclass(frozen=True)
class ProfileChoice:
    """The choice of `auto`. `room` is how many replicas the cluster holds now; `reason` is a sentence for the log."""

    profile: str
    accelerator: str | None
    room: int
    reason: str

    @property
    def is_demo(self) -> bool:
        """Whether this is the demo model, which nobody should take for the real one."""
        return self.profile == CPU_PROFILE


def choose_profile(nodes: Sequence[NodeGpus]) -> ProfileChoice:
    """The best shipped layout that some node holds; the CPU demo only where no node has a GPU.

    Raises `NoProfileFits` where there are GPUs but no layout for them: nobody who has GPUs expects the demo model.
    """
    if not any(node.gpus for node in nodes):
        return ProfileChoice(
            CPU_PROFILE,
            None,
            1,
            "NO GPU in this cluster: serving the tiny demo model on the CPU. It talks, but it is NOT Step-3.7-Flash.",
        )
    for layout in PROFILE_GPUS:
        for accelerator in layout.accelerators:
            room = sum(node.gpus // layout.gpus for node in nodes if node.accelerator == accelerator)
            if room:
                reason = f"{describe(nodes)}: profile {layout.profile}, room for {room} replica{'s' * (room > 1)}"
                return ProfileChoice(layout.profile, accelerator, room, reason)
    offers = ", ".join(f"{layout.gpus}x {layout.accelerators[0]} ({layout.profile})" for layout in PROFILE_GPUS)
    raise NoProfileFits(
        f"the cluster has {describe(nodes)}; a node with one of these is needed: {offers}. "
        "For other GPUs copy the nearest file in configs/ and set `profile:` in deploy.yaml to its path."
    )


def describe(nodes: Sequence[NodeGpus]) -> str:
    """`2 nodes of 8x H100, 1 node without GPUs`."""
    kinds: dict[str, int] = {}
    for node in nodes:
        cpus = f" ({node.cpus:g} CPUs)" if math.isfinite(node.cpus) else ""
        kind = f"of {node.gpus}x {node.accelerator or 'unknown GPU'}" if node.gpus else f"without GPUs{cpus}"
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} node{'s' if count > 1 else ''} {kind}" for kind, count in kinds.items()) or "no node"


def check_fit(config: AppConfig, nodes: Sequence[NodeGpus]) -> None:
    """Raise `NoProfileFits` if the nodes cannot hold the minimum number of replicas."""
    replicas, ingress = config.replicas, config.ingress
    if replicas.cluster_grows:
        return
    room_for = room(replicas, nodes)
    if room_for < replicas.needed:
        raise NoProfileFits(
            f"profile {config.profile} needs {_need(replicas)} for each of {replicas.needed} engine(s); the cluster "
            f"has {describe(nodes)}: room for {room_for}. Lower `replicas.min`, name another profile, or add nodes "
            "(`replicas.cluster_grows: true` if the cluster adds them by itself)."
        )
    needed = replicas.needed * replicas.cpus_per_replica + ingress.min_replicas * ingress.cpus_per_replica
    there = sum(node.cpus for node in nodes)
    if needed > there:
        raise NoProfileFits(
            f"profile {config.profile} reserves {needed:g} CPUs ({replicas.needed} x {replicas.cpus_per_replica:g} for "
            f"engines, {ingress.min_replicas} x {ingress.cpus_per_replica:g} for ingress replicas); the cluster has "
            f"{there:g}. "
            "Lower `replicas.cpus_per_replica` or `ingress.cpus_per_replica`: they reserve, they enforce nothing."
        )


def room(replicas: ReplicasConfig, nodes: Sequence[NodeGpus]) -> int:
    """How many engines these nodes hold."""
    share = 1 / replicas.nodes_per_replica
    parts = 0
    for node in nodes:
        if replicas.accelerator_type not in {None, node.accelerator} or not _matches(replicas.label_selector, node):
            continue
        wants = {"GPU": (replicas.gpus_per_replica * share, float(node.gpus))}
        wants["CPU"] = (replicas.cpus_per_replica * share, node.cpus)
        wants |= {name: (count, node.resources.get(name, 0.0)) for name, count in replicas.resources.items()}
        # A hair more than there is: three times 0.1 of 0.3 must fit.
        parts += min(int(min(there / want + 1e-9, 1_000_000)) for want, there in wants.values() if want)
    return parts // replicas.nodes_per_replica


def _matches(selector: Mapping[str, str], node: NodeGpus) -> bool:
    # Ray's `!value` and `in(a, b)` are left to Ray: a wrong refusal would be worse than a late one.
    plain = {name: value for name, value in selector.items() if value[:1] != "!" and "(" not in value}
    return all(node.labels.get(name) == value for name, value in plain.items())


def _need(replicas: ReplicasConfig) -> str:
    nodes = replicas.nodes_per_replica
    each = (
        f"{replicas.gpus_per_replica // nodes}x {replicas.accelerator_type or 'GPU'}"
        if replicas.gpus_per_replica
        else ""
    )
    parts = [each, f"{replicas.cpus_per_replica / nodes:g} CPUs"]
    parts += [f"{count:g} {name}" for name, count in replicas.resources.items()]
    parts += [f"the label {name}={value}" for name, value in replicas.label_selector.items()]
    where = "on one node" if nodes == 1 else f"on each of {nodes} nodes"
    return f"{', '.join(filter(None, parts))} {where}"


def cluster_nodes() -> list[NodeGpus]:
    """The live nodes of the Ray cluster that this process is connected to."""
    import ray

    nodes = []
    for node in ray.nodes():
        if not node.get("Alive"):
            continue
        resources: dict[str, float] = node.get("Resources", {})
        prefix = "accelerator_type:"
        # Where a node has two names (`A100`, `A100-80G`) the longer says more.
        names = sorted((key.removeprefix(prefix) for key in resources if key.startswith(prefix)), key=len)
        nodes.append(
            NodeGpus(
                node=str(node.get("NodeManagerAddress", "?")),
                accelerator=names[-1] if names else None,
                gpus=int(resources.get("GPU", 0)),
                cpus=resources.get("CPU", 0.0),
                resources=resources,
                labels=node.get("Labels", {}),
                node_id=str(node.get("NodeID", "")),
            )
        )
    return nodes


def this_machine() -> NodeGpus:
    """This machine as the only node of a Ray that is not started yet. Its GPUs come from `nvidia-smi`."""
    gpus = _gpus()
    # Ray's own naming: the first word of capitals and digits after the vendor ("NVIDIA H100 80GB HBM3" is `H100`).
    match = re.match(r"(?:NVIDIA|Tesla)\s+(?:Tesla\s+)?([A-Z0-9]+)", gpus[0][0]) if gpus else None
    cpus = float(len(os.sched_getaffinity(0)))
    sizes = [size for _, size in gpus if size]
    accelerator = match.group(1) if match else None
    return NodeGpus("this machine", accelerator, len(gpus), cpus, gpu_bytes=min(sizes, default=None))


def may_hold_engine(replicas: ReplicasConfig) -> bool:
    """Whether an engine could run on this node: a cluster's head often has no GPU, and no disk for the weights."""
    return not replicas.gpus_per_replica or bool(_gpus())


def _gpus() -> list[tuple[str, int]]:
    """Name and memory of each GPU that may be used."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found = [parse_gpu(line) for line in answer.stdout.splitlines() if line.strip()]
    return found if visible is None else found[: len([part for part in visible.split(",") if part.strip()])]


def parse_gpu(line: str) -> tuple[str, int]:
    """Name and bytes from a line of `nvidia-smi`; 0 bytes where it does not report them.

    >>> parse_gpu("NVIDIA H100 80GB HBM3, 81559")
    ('NVIDIA H100 80GB HBM3', 85520809984)
    """
    name, _, mebibytes = line.rpartition(",")
    size = mebibytes.strip()
    return name.strip() or line.strip(), int(size) * 1024**2 if size.isdigit() else 0
