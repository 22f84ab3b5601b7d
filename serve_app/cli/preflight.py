"""The checks before anything heavy starts; each failing check says in one line what to do.

`checks` runs everything that `make serve` and `python -m serve_app preflight` check on this machine. `checked_fleet`
is the part that needs no machine: `build()` calls it, so that a plain `serve run` refuses the same mistakes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from serve_app.cli.check import Check, CheckStatus, failed, passed
from serve_app.cli.config_checks import (
    compile_cache_checks,
    flag_checks,
    keys_checks,
    layout_checks,
    model_checks,
)
from serve_app.cli.deploy_checks import key_checks, serve_option_checks, value_checks
from serve_app.cli.gpu_checks import gpu_checks
from serve_app.cli.gpu_facts import this_box
from serve_app.cli.machine_checks import machine_checks, port_checks, version_checks
from serve_app.cli.pool_checks import canary_checks, fit_checks, pool_checks
from serve_app.config import deployment, fleet, hardware, machine, profile
from serve_app.config.deployment import Deployment
from serve_app.config.fleet import FleetConfig, FleetPart
from serve_app.config.hardware import NodeGpus
from serve_app.config.schema import ConfigError
from serve_app.config.vllm_flags import engine_argv


def checked_fleet(args: Mapping[str, object]) -> FleetConfig:
    """`fleet.load`, and refusals of what would fail minutes later: flags, model files, keys, resources. Raises
    `ConfigError`.

    In a start that `make serve` has checked, vLLM's parser does not run again: importing it takes seconds.
    """
    nodes = hardware.cluster_nodes()
    found_fleet = fleet.load_args(args, nodes)
    found = [
        *(check for part in found_fleet.parts for check in _part_checks(part, ())),
        *pool_checks(found_fleet),
        *keys_checks(found_fleet.ingress),
        *fit_checks(found_fleet, nodes),
    ]
    faults = [f"{check.name}: {check.message}; {check.advice}" for check in found if check.status is CheckStatus.FAIL]
    if faults:
        raise ConfigError("\n".join(faults))
    for part in found_fleet.parts:
        if part.config.engine.kind == "vllm" and machine.RUN_MARK not in os.environ:
            engine_argv(part.config)
    return found_fleet


def _part_checks(part: FleetPart, nodes: Sequence[NodeGpus]) -> Iterator[Check]:
    """The checks of one part of the fleet; their names have the pool's."""
    config = part.config
    for check in (
        *model_checks(config, engine_here=hardware.may_hold_engine(config.replicas)),
        *layout_checks(config, nodes),
    ):
        yield replace(check, name=f"{check.name} {part.name}".strip())


def checks(file: Path, joins: str | None) -> Iterator[Check]:
    """Every check, as it ends. `joins` is the address of a running Ray cluster, if there is one.

    vLLM's parser comes last, and only where nothing else failed: importing it takes most of the time.
    """
    yield from version_checks()
    try:
        faults = list(key_checks(deployment.read_yaml(file)))
        deploy = None if faults else deployment.read(file)
        faults += [] if deploy is None else value_checks(deploy)
        if deploy is None or faults:
            yield from faults
            return
        nodes = None if joins else [hardware.this_machine()]
        is_auto = deploy.args.values.get("profile", "auto") == "auto"
        found = None if nodes is None and is_auto else fleet.load(deploy.args, nodes)
        if found is not None and deploy.canary_args is not None:
            fleet.load(deploy.canary_args, nodes)  # its refusals end the checks, as the service's do
    except ConfigError as error:
        yield failed("config", str(error), "change that line; docs/configuration.md lists what there is")
        return
    ready = True
    for check in _quick_checks(deploy, found, nodes):
        ready = ready and check.status is not CheckStatus.FAIL
        yield check
    if joins:
        yield Check(CheckStatus.NOTE, "cluster", f"joins Ray at {joins}: resources are checked there, in `build()`")
    if ready and found is not None:
        yield from flag_checks(file, found.ingress, profile.ROOT / "build" / "flags-passed")


def _quick_checks(deploy: Deployment, found: FleetConfig | None, nodes: Sequence[NodeGpus] | None) -> Iterator[Check]:
    yield from port_checks(deploy)
    yield from machine_checks()
    if found is None:
        return
    config = found.ingress
    yield passed("config", f"{deploy.file.name} over configs/{config.profile}.yaml: {config.model.source}")
    yield from serve_option_checks(deploy, config)
    for part in found.parts:
        yield from _part_checks(part, nodes or ())
    yield from pool_checks(found)
    if deploy.canary_args is not None:
        yield from canary_checks(found, fleet.load(deploy.canary_args, nodes))
    yield from keys_checks(config)
    yield from compile_cache_checks(config)
    yield from gpu_checks(this_box(config.engine.env, config.engine.compile_cache_dir), config)
    if nodes is not None:
        yield from fit_checks(found, nodes)
