"""The table of `python -m serve_app plan`: what each profile's layout holds, by the arithmetic of
`config/memory.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serve_app.cli.config_checks import layout_of, shape_of
from serve_app.config import memory
from serve_app.config.memory import GB
from serve_app.config.schema import AppConfig, load_config

SESSION_TOKENS = {"32k": 32_768, "100k": 100_000, "256k": 262_144}
_ROW = "{:<14} {:<9} {:>12} {:>10} {:>10} {:>7} {:>7} {:>7}"
GIB = 1024**3

EXPLANATION = """\
Sessions: how many of that many tokens are held at a time, by a whole replica. Weights and blocks are reckoned as vLLM
does it; activations, CUDA graphs and the runtime are guessed, to some 2 GB a GPU. At start vLLM measures them, and
prints the quoted lines with its own figures. Its KV cache size counts whole contexts, each while its prompt is read: a
session between its steps takes less."""


def table(profiles: Sequence[str]) -> Iterator[str]:
    """Lines of text: a row per profile, findings under it, and how the figures come about."""
    yield _ROW.format("profile", "replica", "weights/GPU", "other/GPU", "cache/GPU", *SESSION_TOKENS)
    known = False
    for name in profiles:
        config = load_config({"profile": name}, [])
        row = _row(config)
        known = known or row is not None
        yield row or f"{config.profile:<14} no GPU, or one whose memory is not known: no arithmetic"
        yield from _vllms_lines(config)
        yield from _findings(config)
    if known:
        yield ""
        yield from EXPLANATION.splitlines()


def _row(config: AppConfig) -> str | None:
    shape, layout = shape_of(config), layout_of(config)
    if shape is None or layout is None:
        return None
    room = memory.memory_capacity(shape, layout)
    gpus = config.replicas.gpus_per_replica
    return _ROW.format(
        config.profile,
        f"{gpus}x {config.replicas.accelerator_type}",
        f"{room.weights_bytes / GB:.1f} GB",
        f"{room.overhead_bytes / GB:.1f} GB",
        f"{room.cache_bytes / GB:.1f} GB",
        *(room.sessions(tokens) for tokens in SESSION_TOKENS.values()),
    )


def _vllms_lines(config: AppConfig) -> Iterator[str]:
    """What vLLM will print, in its own words."""
    shape, layout = shape_of(config), layout_of(config)
    if shape is None or layout is None:
        return
    room = memory.memory_capacity(shape, layout)
    each = f" (each of {room.ranks} data-parallel ranks)" if room.ranks > 1 else ""
    yield f'{"":<14} "Available KV cache memory: {room.cache_bytes / GIB:.2f} GiB"{each}'
    longest, concurrency = room.cache.longest, room.cache.concurrency()
    yield (
        f'{"":<14} "GPU KV cache size: {room.tokens():,} tokens, '
        f'Maximum concurrency for {longest:,} tokens per request: {concurrency:.2f}x"'
    )


def _findings(config: AppConfig) -> Iterator[str]:
    shape, layout = shape_of(config), layout_of(config)
    if shape is not None and layout is not None:
        for finding in memory.layout_issues(shape, layout):
            yield f"{'':<14} {'CANNOT WORK' if finding.fatal else 'note'}: {finding.message}"
