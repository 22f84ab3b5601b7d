"""Which profile the cluster's GPUs can hold.

`choose_profile` and `check_fit` are pure: what the nodes have goes in, a choice or a refusal comes out. `cluster_nodes`
is the thin adapter that asks Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CPU_PROFILE = "cpu-demo"


class NoProfileFits(Exception):
    """The cluster cannot hold what was asked for; the message says what it has, what is needed, and what to change."""


@dataclass(frozen=True)
class NodeGpus:
    """One node's GPUs, as Ray sees them. `accelerator` is Ray's name (`H100`), None where it has none."""

    node: str
    accelerator: str | None
    gpus: int


@dataclass(frozen=True)
class Layout:
    """What a shipped profile needs on one node. `accelerators` are Ray's names for GPUs with that memory or more."""

    profile: str
    accelerators: tuple[str, ...]
    gpus: int


LAYOUTS = (
    Layout("b200-x4", ("B200", "GB200", "B300", "GB300"), 4),
    Layout("h200-x8", ("H200",), 8),
    Layout("h200-x4", ("H200",), 4),
    Layout("h100-x8", ("H100",), 8),
    Layout("h100-x4-fp8", ("H100",), 4),
    Layout("a100-x8", ("A100", "A100-80G"), 8),
)
"""What `auto` picks from, best first. `h100-x8-fp8` is for an explicit choice: it trades the weights' precision for
room."""


@dataclass(frozen=True)
class ProfileChoice:
    """What `auto` came to. `room` is how many replicas the cluster holds now; `reason` is a sentence for the log."""

    profile: str
    room: int
    reason: str

    @property
    def is_demo(self) -> bool:
        """Whether this is the toy model, which must not pass unnoticed."""
        return self.profile == CPU_PROFILE


def choose_profile(nodes: Sequence[NodeGpus]) -> ProfileChoice:
    """The best shipped layout that some node holds; the CPU demo only where no node has any GPU.

    Raises `NoProfileFits` where there are GPUs but no layout for them: serving a toy in their place would deceive.
    """
    if not any(node.gpus for node in nodes):
        return ProfileChoice(
            CPU_PROFILE,
            1,
            "NO GPU in this cluster: serving the tiny demo model on the CPU. It talks, but it is NOT Step-3.7-Flash.",
        )
    for layout in LAYOUTS:
        room = sum(node.gpus // layout.gpus for node in nodes if node.accelerator in layout.accelerators)
        if room:
            return ProfileChoice(
                layout.profile, room, f"{describe(nodes)}: profile {layout.profile}, room for {room} replica(s)"
            )
    offers = ", ".join(f"{layout.gpus}x {layout.accelerators[0]} ({layout.profile})" for layout in LAYOUTS)
    raise NoProfileFits(
        f"the cluster has {describe(nodes)}; a node with one of these is needed: {offers}. "
        "For other GPUs copy the nearest file in configs/ and set `profile:` in deploy.yaml to its path."
    )


def describe(nodes: Sequence[NodeGpus]) -> str:
    """`2 nodes of 8x H100, 1 node without GPUs`."""
    kinds: dict[str, int] = {}
    for node in nodes:
        kind = f"of {node.gpus}x {node.accelerator or 'unknown GPU'}" if node.gpus else "without GPUs"
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} node{'s' if count > 1 else ''} {kind}" for kind, count in kinds.items()) or "no node"


def cluster_nodes() -> list[NodeGpus]:
    """The live nodes of the Ray cluster that this process is connected to."""
    import ray

    nodes = []
    for node in ray.nodes():
        if not node.get("Alive"):
            continue
        resources: dict[str, float] = node.get("Resources", {})
        prefix = "accelerator_type:"
        names = sorted((key.removeprefix(prefix) for key in resources if key.startswith(prefix)), key=len)
        name = names[-1] if names else None
        nodes.append(NodeGpus(str(node.get("NodeManagerAddress", "?")), name, int(resources.get("GPU", 0))))
    return nodes
