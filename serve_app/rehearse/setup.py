"""What is rehearsed on this machine, and the deploy.yaml for it; or in one line why nothing can be, and what to do.

a GPU for each of the layout's -> the layout as it is; fewer, and `--share` -> one rank's share on one GPU;
no GPU                         -> the demo: every phase is run, and nothing is shown about GPUs
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.cli.config_checks import hub_cache, shape_of
from serve_app.config import hardware, machine, profile
from serve_app.config.deployment import Deployment
from serve_app.config.hardware import CPU_PROFILE, NodeGpus
from serve_app.config.memory import GB
from serve_app.config.profile import ROOT
from serve_app.config.schema import AppConfig, ConfigError, flag
from serve_app.config.yaml_lines import YamlDocument
from serve_app.rehearse import dummy_model

ACCEPTED = 2.8
"""Accepted tokens per step: the published figures correspond to it (`loadtest/metrics/reference_results.py`)."""
NEEDED_BYTES = 1_000_000_000
"""Logs, reports and the dummy model's small files."""
HOST = "127.0.0.1"

NOT_SHOWN_BY_A_SHARE = (
    "one rank's share on one GPU: nothing between GPUs is tried (NCCL, NVLink, all-reduce, expert parallelism), "
    "rates are without it, prompts cost more (each token visits 8 of this rank's experts, not 1), "
    "and the load test's figures are not comparable with published ones"
)
NOT_SHOWN_BY_THE_DEMO = (
    "no GPU is used: this rehearses the demo's shape on the CPU. It shows that the software starts, answers and "
    "recovers here, and nothing of {profile}"
)


class Refused(ConfigError):
    """Nothing can be rehearsed as asked. The message says what to do instead."""


@dataclass(frozen=True)
class RehearsalPlan:
    """One rehearsal."""

    profile: str
    """The layout that was asked for."""
    config: AppConfig
    """The configuration as started: dummy weights, and a share's sizes."""
    ranks: int
    """How many shares the full model has; 1 where all of it runs."""
    is_demo: bool
    model: Path
    deploy: Path
    port: int
    source: Path
    """The folder of tokenizer, processor and configuration."""
    warnings: tuple[str, ...]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `rehearse`."""
    add = parser.add_argument
    add("--profile", help="a layout in configs/ or a path (default: what --file says; `auto` by this machine's GPUs)")
    add("--share", action="store_true", help="one rank's share of the layout, on one GPU")
    add("--out", type=Path, help="folder for the results (default build/rehearsal-PROFILE)")
    add("--port", type=int, help="port of the endpoint while it lasts (default: what --file says)")
    add("--load-s", type=float, default=60.0, help="how long requests of the load are started (default 60)")


def plan(deploy: Deployment, given: argparse.Namespace) -> RehearsalPlan:
    """Decide, and write the dummy model and its deploy.yaml. Raises `ConfigError`."""
    node = hardware.this_machine()
    args = dict(deploy.args.values) | ({"profile": given.profile} if given.profile else {})
    try:
        wanted = profile.load(YamlDocument(deploy.args.origin, args, deploy.args.lines), [node])
    except ConfigError as error:
        if args.get("profile", "auto") != "auto":
            raise
        raise Refused(f"{error}\nOr rehearse one rank's share of a layout: --share --profile h100-x8") from error
    is_demo, ranks = choose(wanted, node, share=given.share)
    port = given.port or deploy.port
    _refuse_where_something_runs(port)
    out = (given.out or ROOT / "build" / f"rehearsal-{Path(wanted.profile).stem}").resolve()
    model = out / "model"
    _clear(model, out)
    source, config = _checkpoint(wanted, is_demo=is_demo, ranks=ranks)
    try:
        dummy_model.write(model, source, config)
    except OSError as error:
        raise Refused(f"cannot write the dummy model: {error}; give another folder with --out") from error
    base = {"profile": CPU_PROFILE} if is_demo else args
    laid_over = profile.merge(base, overrides(wanted, model, node, is_demo=is_demo, ranks=ranks))
    file = out / "deploy.yaml"
    file.write_text(yaml.safe_dump(_deploy_values(deploy, port, laid_over), sort_keys=False), encoding="utf-8")
    started = profile.load(YamlDocument(file.name, laid_over, {}), [node])
    warnings = _warnings(wanted, node, source, is_demo=is_demo, ranks=ranks)
    return RehearsalPlan(wanted.profile, started, ranks, is_demo, model, file, port, source, warnings)


def choose(wanted: AppConfig, node: NodeGpus, *, share: bool) -> tuple[bool, int]:
    """Whether it is the demo, and into how many shares the model is split. Raises `Refused`."""
    replicas = wanted.replicas
    if wanted.engine.kind != "vllm":
        raise Refused("engine.kind is fake: there is nothing to rehearse; name a profile with --profile")
    if not node.gpus or not replicas.gpus_per_replica:
        return True, 1
    if share:
        return False, replicas.gpus_per_replica
    instead = "`--share` runs one rank's share of it on one GPU"
    if replicas.nodes_per_replica > 1:
        raise Refused(f"{wanted.profile} spans {replicas.nodes_per_replica} nodes, and this is one; {instead}")
    here = f"this machine has {node.gpus}x {node.accelerator or 'unknown GPU'}"
    if node.gpus < replicas.needed * replicas.gpus_per_replica:
        engines = f" for each of {replicas.needed} engines" if replicas.needed > 1 else ""
        raise Refused(f"{wanted.profile} needs {replicas.gpus_per_replica} GPUs{engines}, and {here}; {instead}")
    if replicas.accelerator_type not in {None, node.accelerator}:
        raise Refused(f"{wanted.profile} is for {replicas.accelerator_type}, and {here}; {instead}")
    return False, 1


def overrides(wanted: AppConfig, model: Path, node: NodeGpus, *, is_demo: bool, ranks: int) -> dict[str, object]:
    """The rehearsal's changes of the configuration. Everything else stays."""
    flags: dict[str, object] = {"load-format": "dummy"}
    found: dict[str, object] = {"model": {"source": str(model), "revision": None}, "engine": {"flags": flags}}
    # Nobody but this machine can reach it, and the requests have no key.
    found["ingress"] = {"keys_file": None}
    if is_demo:
        return found  # vLLM's sampler on the CPU knows no synthetic acceptance
    if isinstance(flag(wanted.engine.flags, "speculative-config"), dict):
        # Random weights guess nothing right: the published acceptance is asked for instead.
        flags["speculative-config"] = {
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_length": ACCEPTED,
        }
    if ranks > 1:
        flags |= dict.fromkeys(("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"), 1)
        replicas = {"gpus_per_replica": 1, "nodes_per_replica": 1, "min": 1, "max": 1, "initial": None}
        placed: dict[str, object] = {"accelerator_type": node.accelerator, "label_selector": {}, "resources": {}}
        found["replicas"] = {**replicas, **placed, "cpus_per_replica": wanted.replicas.cpus_per_replica / ranks}
        found["ingress"] = {"keys_file": None, "min_replicas": 1}
    return found


def _checkpoint(wanted: AppConfig, *, is_demo: bool, ranks: int) -> tuple[Path, dict[str, Any]]:
    """The folder of small files to copy, and the configuration to write: the model's own where they are here."""
    demo = dummy_model.read_config(dummy_model.DEMO)
    if is_demo:
        return dummy_model.DEMO, demo
    own = own_files(wanted) if ranks == 1 else None
    if own is not None:
        # Another release may lay its configuration out differently: then the demo's must do.
        with contextlib.suppress(LookupError, TypeError, ValueError):
            config = dummy_model.read_config(own)
            list(dummy_model.tensors(config))
            return own, config
    shape = shape_of(wanted)
    fp8 = shape.fp8 if shape is not None else wanted.model.source.upper().endswith("FP8")
    return dummy_model.DEMO, dummy_model.full_config(demo, ranks=ranks, fp8=fp8)


def own_files(wanted: AppConfig) -> Path | None:
    """The folder with the real model's configuration, tokenizer and processor, where this machine has them already."""
    source = wanted.model.source
    if Path(source).is_absolute():
        folders = [Path(source)]
    else:
        folders = sorted(hub_cache(wanted.engine.env).glob(f"models--{source.replace('/', '--')}/snapshots/*"))
    needed = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
    whole = [folder for folder in folders if all((folder / name).is_file() for name in needed)]
    return whole[-1] if whole else None


def _refuse_where_something_runs(port: int) -> None:
    joins = machine.running_ray()
    if joins is not None:
        raise Refused(
            f"Ray runs at {joins}: a rehearsal needs the machine to itself. End it (`ray stop`), or unset RAY_ADDRESS"
        )
    holder = machine.port_holder(HOST, port)
    if holder is not None:
        raise Refused(f"port {port} is held by {holder}: stop it, or give another with --port")


def _clear(model: Path, out: Path) -> None:
    if model.exists():
        shutil.rmtree(model)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot write {out} ({error.strerror}); give another folder with --out") from error
    free = machine.free_bytes(out)
    if free < NEEDED_BYTES:
        raise Refused(f"{out} has {free / GB:.2f} GB free, and 1 GB is needed; give another folder with --out")


def _deploy_values(deploy: Deployment, port: int, args: Mapping[str, object]) -> dict[str, object]:
    applications: Any = deploy.document.values["applications"]
    return {
        **deploy.document.values,
        "http_options": {"host": HOST, "port": port},
        "applications": [{**applications[0], "args": dict(args)}],
    }


def _warnings(wanted: AppConfig, node: NodeGpus, source: Path, *, is_demo: bool, ranks: int) -> tuple[str, ...]:
    if is_demo:
        return (NOT_SHOWN_BY_THE_DEMO.format(profile="GPUs" if wanted.profile == CPU_PROFILE else wanted.profile),)
    said = []
    if ranks > 1:
        said.append(NOT_SHOWN_BY_A_SHARE)
        if wanted.replicas.accelerator_type not in {None, node.accelerator}:
            said.append(f"{wanted.profile} is for {wanted.replicas.accelerator_type}; this is {node.accelerator}")
    if source == dummy_model.DEMO:
        theirs = wanted.model.source
        fetch = f"`.venv/bin/hf download {theirs} --exclude '*.safetensors'` fetches the model's own small files"
        advice = "" if Path(theirs).is_absolute() else f"; {fetch}"
        said.append(f"tokenizer, image processor and template are the demo's: those of {theirs} are not here{advice}")
    return tuple(said)
