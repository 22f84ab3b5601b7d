"""Empty compile caches, as on a machine that has never run an engine."""

from __future__ import annotations

from pathlib import Path

VARIABLES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def empty_caches(folder: Path) -> dict[str, str]:
    """The environment of an engine that has compiled nothing yet."""
    return {name: str(folder / name.lower()) for name in VARIABLES}
