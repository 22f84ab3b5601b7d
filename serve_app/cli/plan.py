"""The table of `python -m serve_app plan`: what each profile's layout holds, by the arithmetic of
`config/memory.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serve_app.cli.config_checks import layout_of, shape_of
from serve_app.config import memory
from serve_app.config.memory import GB
from serve_app.config.profile import load_config
from serve_app.config.schema import AppConfig

SESSION_TOKENS = {"32k": 32_768, "100k": 100_000, "256k": 262_144}
_ROW = "{:<14} {:<9} {:>12} {:>10} {:>10} {:>7} {:>7} {:>7}"
GIB = 1024**3

EXPLANATION = """\
Sessions: how many of that many tokens are held at a time, by a whole replica. Weights and blocks are computed as vLLM
does it; activations, CUDA graphs and the runtime are estimated, to some 2 GB a GPU. At start vLLM measures them, and
prints the quoted lines with its own figures. Its KV cache size counts whole contexts, each during its prefill: a
session between its steps takes less."""


def table(profiles: Sequence[str]) -> Iterator[str]:
    """Lines of text: a row per profile, issues below it, and an explanation of the figures."""
    yield _ROW.format("profile", "replica", "weights/GPU", "other/GPU", "cache/GPU", *SESSION_TOKENS)
    known = False
    for name in profiles:
        config = load_config({"profile": name}, [])
        row = _row(config)
        known = known or row is not None
        yield row or f"{config.profile:<14} no GPU, or one whose memory is not known: no arithmetic"
        yield from _vllms_lines(config)
        yield from _issues(config)
    if known:
        yield ""
        yield from EXPLANATION.splitlines()


def _row(config: AppConfig) -> str | None:
    shape, layout = shape_of(config), layout_of(config)
    if shape is None or layout is None:
        return None
    capacity = memory.memory_capacity(shape, layout)
    gpus = config.replicas.gpus_per_replica
    return _ROW.format(
        config.profile,
        f"{gpus}x {config.replicas.accelerator_type}",
        f"{capacity.weights_bytes / GB:.1f} GB",
        f"{capacity.overhead_bytes / GB:.1f} GB",
        f"{capacity.cache_bytes / GB:.1f} GB",
        *(capacity.sessions(tokens) for tokens in SESSION_TOKENS.values()),
    )


def _vllms_lines(config: AppConfig) -> Iterator[str]:
    """The lines that vLLM will print."""
    shape, layout = shape_of(config), layout_of(config)
    if shape is None or layout is None:
        return
    capacity = memory.memory_capacity(shape, layout)
    each = f" (each of {capacity.ranks} data-parallel ranks)" if capacity.ranks > 1 else ""
    yield f'{"":<14} "Available KV cache memory: {capacity.cache_bytes / GIB:.2f} GiB"{each}'
    longest, concurrency = capacity.cache.longest, capacity.cache.concurrency()
    yield (
        f'{"":<14} "GPU KV cache size: {capacity.tokens():,} tokens, '
        f'Maximum concurrency for {longest:,} tokens per request: {concurrency:.2f}x"'
    )


def _issues(config: AppConfig) -> Iterator[str]:
    shape, layout = shape_of(config), layout_of(config)
    if shape is not None and layout is not None:
        for issue in memory.layout_issues(shape, layout):
            yield f"{'':<14} {'CANNOT WORK' if issue.fatal else 'note'}: {issue.message}"
