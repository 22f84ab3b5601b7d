"""Which replicas must get nothing: those of another version.

A request crosses in vLLM's own encoding, whose fields are positions: two versions would misread each other without
noticing. So the ingress sends nothing to a replica of another version, and reports which versions there are and what to
do in the log, in `/health`, in a request's 503 and in `doctor`.
"""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.protocol.messages import WIRE_VERSION, ReplicaInfo

ANY = frozenset({"", "fake"})
"""Versions that match all others: an unknown one, and that of the fake engine, which reads nothing of vLLM's."""

FIX = (
    "install the same on every node: `make venv`, with STEP_SERVE_MACHINE=gpu where the node itself has no GPU, "
    "and start the service again"
)


@dataclass(frozen=True)
class EngineVersions:
    """The versions of this ingress. `vllm` is what `config/vllm_device.version` returns."""

    vllm: str

    def mismatch(self, info: ReplicaInfo) -> str | None:
        """Why this replica cannot be used and how to fix it, in one sentence; None where it can."""
        if info.wire_version != WIRE_VERSION:
            return (
                f"the ingress speaks wire version {WIRE_VERSION}, replica {info.replica_id} {info.wire_version}: "
                "deploy the same version of this application on every node"
            )
        if ANY & {self.vllm, info.vllm_version} or _public(self.vllm) == _public(info.vllm_version):
            return None
        return (
            f"the ingress runs vLLM {_in_words(self.vllm)}, replica {info.replica_id} runs "
            f"{_in_words(info.vllm_version)}: {FIX}"
        )


def _public(version: str) -> str:
    """The version before `+`: the CPU and the CUDA build of one version have the same Python code."""
    return version.split("+", maxsplit=1)[0]


def _in_words(version: str) -> str:
    return f"{_public(version)} (CPU build)" if version.endswith("+cpu") else version
