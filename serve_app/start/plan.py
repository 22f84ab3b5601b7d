"""The table of `python -m serve_app plan`: what each profile's layout holds, by the arithmetic of `memory.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serve_app import memory
from serve_app.config import AppConfig, load_config
from serve_app.memory import GB
from serve_app.start.config_checks import layout_of, shape_of

SESSION_TOKENS = {"32k": 32_768, "100k": 100_000, "256k": 262_144}
_ROW = "{:<14} {:<9} {:>12} {:>12} {:>10} {:>7} {:>7} {:>7}"

EXPLANATION = f"""\
Sessions: how many of that many tokens are held at a time. Estimates: weights split evenly over the GPUs, then
{memory.OVERHEAD_BYTES // GB} GB on each for activations and graphs; the rest of gpu-memory-utilization is the cache.
A token takes cache in the full-attention layers only, a session one window in each sliding one. At start vLLM
measures, and prints `GPU KV cache size`."""


def table(profiles: Sequence[str]) -> Iterator[str]:
    """Lines of text: a row per profile, findings under it, and how the figures come about."""
    yield _ROW.format("profile", "replica", "weights/GPU", "cache/GPU", "KV tokens", *SESSION_TOKENS)
    known = False
    for name in profiles:
        config = load_config({"profile": name}, [])
        row = _row(config)
        known = known or row is not None
        yield row or f"{config.profile:<14} no GPU, or one whose memory is not known: no arithmetic"
        yield from _findings(config)
    if known:
        yield ""
        yield from EXPLANATION.splitlines()


def _row(config: AppConfig) -> str | None:
    shape, layout = shape_of(config), layout_of(config)
    if shape is None or layout is None:
        return None
    room = memory.room(shape, layout)
    gpus = config.replicas.gpus_per_replica
    return _ROW.format(
        config.profile,
        f"{gpus}x {config.replicas.accelerator_type}",
        f"{room.weights_bytes / GB:.1f} GB",
        f"{room.cache_bytes / gpus / GB:.1f} GB",
        f"{room.tokens() / 1e6:.2f} M",
        *(room.sessions(tokens) for tokens in SESSION_TOKENS.values()),
    )


def _findings(config: AppConfig) -> Iterator[str]:
    shape, layout = shape_of(config), layout_of(config)
    if shape is not None and layout is not None:
        for finding in memory.findings(shape, layout):
            yield f"{'':<14} {'CANNOT WORK' if finding.fatal else 'note'}: {finding.message}"
