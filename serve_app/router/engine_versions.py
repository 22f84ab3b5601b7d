"""Whether an ingress can work with an engine replica: both must run the same vLLM, and speak the same wire version.

A request crosses in vLLM's own encoding, whose fields are positions: two versions would read each other's wrongly, and
not notice. So the ingress sends nothing to a replica of another version, and says on every way that a person looks at
(log, `/health`, a request's 503, `doctor`) which versions there are and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.protocol.messages import WIRE_VERSION, ReplicaInfo

ANY = frozenset({"", "fake"})
"""Versions that go with all: of a replica that does not say, and of the fake engine, which reads nothing of vLLM's."""

FIX = (
    "install the same on every node: `make venv`, with STEP_SERVE_MACHINE=gpu where the node itself has no GPU, "
    "and start the service again"
)


@dataclass(frozen=True)
class EngineVersions:
    """What this ingress runs. `vllm` as `config/vllm_device.version` gives it."""

    vllm: str

    def mismatch(self, info: ReplicaInfo) -> str | None:
        """What is wrong with this replica and how to mend it, in one sentence; None where nothing is."""
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
    """Without what comes after `+`: the CPU and the CUDA build of one version are the same Python."""
    return version.split("+", maxsplit=1)[0]


def _in_words(version: str) -> str:
    return f"{_public(version)} (CPU build)" if version.endswith("+cpu") else version
