"""The checks before anything heavy starts; each failing check says in one line what to do.

`checks` runs everything that `make serve` and `python -m serve_app preflight` check on this machine. `checked_fleet`
is the part that needs no machine: `build()` calls it, so that a plain `serve run` refuses the same mistakes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from serve_app.cli.check import Check, CheckStatus, failed, passed
from serve_app.cli.config_checks import (
    compile_cache_checks,
    flag_checks,
    flags_mark,
    keys_checks,
    layout_checks,
    model_checks,
    passed_marks,
)
from serve_app.cli.deploy_checks import key_checks, serve_option_checks, value_checks
from serve_app.cli.engine_checks import engine_checks, slo_checks
from serve_app.cli.gpu_checks import gpu_checks
from serve_app.cli.gpu_facts import this_box
from serve_app.cli.machine_checks import machine_checks, port_checks, version_checks
from serve_app.cli.pool_checks import canary_checks, fit_checks, pool_checks
from serve_app.config import deployment, fleet, hardware, machine, profile
from serve_app.config.deployment import Deployment
from serve_app.config.fleet import CANARY, FleetConfig, FleetPart
from serve_app.config.hardware import NodeGpus
from serve_app.config.schema import ConfigError
from serve_app.config.vllm_flags import engine_argv
from serve_app.config.yaml_lines import YamlDocument

FLAGS_PASSED = profile.ROOT / "build" / "flags-passed"
"""The digests of the flags that vLLM's parser took in the last preflight here."""

MISPLACED_CANARY = "args: `canary` belongs into the args of an application of its own (docs/operations.md)"

logger = logging.getLogger(__name__)


def checked_fleet(args: Mapping[str, object]) -> FleetConfig:
    """`fleet.load`, and refusals of what would fail minutes later: flags, model files, keys, resources. Raises
    `ConfigError`.

    For flags that a preflight here has checked, vLLM's parser does not run again: importing it takes seconds. Whether
    this process comes of `make serve` says nothing: another configuration may be deployed into the Ray that runs.
    """
    nodes = hardware.cluster_nodes()
    found_fleet = fleet.load_args(args, nodes)
    found = [
        *(check for part in found_fleet.parts for check in _part_checks(part, ())),
        *pool_checks(found_fleet),
        *slo_checks(found_fleet),
        *keys_checks(found_fleet.ingress),
        *fit_checks(found_fleet, nodes),
    ]
    faults = [f"{check.name}: {check.message}; {check.advice}" for check in found if check.status is CheckStatus.FAIL]
    if faults:
        raise ConfigError("\n".join(faults))
    if machine.RUN_MARK not in os.environ:  # `make serve` has told them
        log_warnings(found)
    known = passed_marks(FLAGS_PASSED)
    for part in found_fleet.parts:
        if part.config.engine.kind == "vllm" and flags_mark(part.config) not in known:
            engine_argv(part.config)
    return found_fleet


def log_warnings(found: Sequence[Check]) -> None:
    """What a plain `serve run` would otherwise not say."""
    for check in found:
        if check.status is CheckStatus.WARN:
            logger.warning("check_warned %s: %s; %s", check.name, check.message, check.advice)


def _part_checks(part: FleetPart, nodes: Sequence[NodeGpus]) -> Iterator[Check]:
    """The checks of one part of the fleet; their names have the pool's."""
    config = part.config
    found = (
        *model_checks(config, engine_here=hardware.may_hold_engine(config.replicas)),
        *layout_checks(config, nodes),
        *engine_checks(config),
    )
    yield from _named(part.name, found)


def _named(part: str, found: Iterable[Check]) -> Iterator[Check]:
    for check in found:
        yield replace(check, name=f"{check.name} {part}".strip())


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
        found = _load(deploy.args, nodes)
        canary = None if deploy.canary_args is None else _load(deploy.canary_args, nodes)
    except ConfigError as error:
        yield failed("config", str(error), "change that line; docs/configuration.md lists what there is")
        return
    ready = True
    for check in _quick_checks(deploy, found, canary, nodes):
        ready = ready and check.status is not CheckStatus.FAIL
        yield check
    if joins:
        yield Check(CheckStatus.NOTE, "cluster", f"joins Ray at {joins}: resources are checked there, in `build()`")
    if ready:
        parts = (*(found.parts if found else ()), *(_canary_parts(canary) if canary else ()))
        yield from flag_checks(file, parts, FLAGS_PASSED)


def _load(args: YamlDocument, nodes: Sequence[NodeGpus] | None) -> FleetConfig | None:
    """The fleet; None where the profile is known only once the cluster can be asked."""
    is_auto = args.values.get("profile", "auto") == "auto"
    return None if nodes is None and is_auto else fleet.load(args, nodes)


def _canary_parts(canary: FleetConfig) -> tuple[FleetPart, ...]:
    """A canary has one layout, and no pools (`canary_checks`)."""
    return (FleetPart(CANARY, canary.ingress),)


def _quick_checks(
    deploy: Deployment, found: FleetConfig | None, canary: FleetConfig | None, nodes: Sequence[NodeGpus] | None
) -> Iterator[Check]:
    yield from port_checks(deploy)
    yield from machine_checks()
    if "canary" in deploy.args.values:
        yield failed("config", f"{deploy.args.where(('canary',))}: {MISPLACED_CANARY}", "move it there, or remove it")
    if found is None:
        return
    config = found.ingress
    yield passed("config", f"{deploy.file.name} over configs/{config.profile}.yaml: {config.model.source}")
    yield from serve_option_checks(deploy, config)
    for part in found.parts:
        yield from _part_checks(part, nodes or ())
        yield from _named(part.name, compile_cache_checks(part.config))
    yield from pool_checks(found)
    yield from slo_checks(found)
    yield from keys_checks(config)
    whole = found
    if canary is not None:
        yield from _canary_checks(found, canary, nodes or ())
        whole = replace(found, parts=(*found.parts, *_canary_parts(canary)))
    yield from gpu_checks(this_box(config.engine.env, config.engine.compile_cache_dir), config)
    if nodes is not None:
        yield from fit_checks(whole, nodes)


def _canary_checks(found: FleetConfig, canary: FleetConfig, nodes: Sequence[NodeGpus]) -> Iterator[Check]:
    """What its application's `build()` and its replicas would refuse."""
    yield from canary_checks(found, canary)
    for part in _canary_parts(canary):
        yield from _part_checks(part, nodes)
        yield from _named(CANARY, compile_cache_checks(part.config))
    if canary.ingress.ingress.keys_file != found.ingress.ingress.keys_file:
        yield from _named(CANARY, keys_checks(canary.ingress))
