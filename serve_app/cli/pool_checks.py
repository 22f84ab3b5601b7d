"""Checks of a fleet as a whole: its pools serve one model, whatever its precision, and the nodes hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from serve_app.cli.check import Check, CheckStatus, failed, passed
from serve_app.config import hardware, memory, profile, room
from serve_app.config.fleet import FleetConfig, FleetPart
from serve_app.config.hardware import NodeGpus, NoProfileFits
from serve_app.config.schema import ConfigError

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def pool_checks(fleet: FleetConfig) -> Iterator[Check]:
    """The pools serve the same model. Nothing is said where there is one part only."""
    if len(fleet.parts) == 1:
        return
    first, *others = fleet.parts
    known = _model_of(first)
    for part in others:
        model = _model_of(part)
        if model is None or known is None:
            message = (
                f"whether {first.config.model.source} and {part.config.model.source} are one model cannot be checked"
            )
            yield Check(
                CheckStatus.NOTE, "pools", message, "two precisions of one model are; two models must not be mixed"
            )
        elif model != known:
            message = f"{part.name} serves {part.config.model.source}, another model than {first.name}'s"
            yield failed("pools", message, "give all pools the same model: another one is an application of its own")
    names = ", ".join(f"{part.name} ({part.config.replicas.min} to {part.config.replicas.max})" for part in fleet.parts)
    yield passed("pools", names)


def canary_checks(fleet: FleetConfig, canary: FleetConfig) -> Iterator[Check]:
    """The canary has what it needs, and its share is not more than its engines can bear."""
    config = canary.ingress
    if config.canary is None:
        yield failed("canary", "its application has no block `canary` in its args", "add `canary: {share: 0.05}`")
        return
    if len(canary.parts) > 1:
        yield failed("canary", "its args have `pools`", "give it one layout: `pools: []`, and `profile`")
        return
    if config.model.served_name != fleet.ingress.model.served_name:
        yield failed("canary", "it serves another name", "leave `model.served_name` as the service has it")
        return
    engines, all_engines = config.replicas.min, config.replicas.min + fleet.ingress.replicas.min
    message = f"{config.canary.share:.0%} of the sessions for {engines} of {all_engines} engines"
    if config.canary.share > engines / all_engines:
        advice = (
            "a canary with more load than the rest is slower for that reason: lower `canary.share`, or raise its `min`"
        )
        yield Check(CheckStatus.WARN, "canary", message, advice)
    else:
        yield passed("canary", message)


def fit_checks(fleet: FleetConfig, nodes: Sequence[NodeGpus]) -> Iterator[Check]:
    """The nodes hold the replicas that are always there."""
    try:
        room.check_fit(fleet, nodes)
    except NoProfileFits as error:
        place = profile.source_location(fleet.parts[0].config.profile, ("replicas",))
        over = "`replicas` in the args of deploy.yaml, which is laid over " if _is_laid_over(fleet.parts[0]) else ""
        yield failed("hardware", str(error), f"change {over}{place} (`replicas`), or `profile` in deploy.yaml")
        return
    if (config := fleet.parts[0].config).profile == hardware.CPU_PROFILE:
        yield Check(
            CheckStatus.WARN, "hardware", f"profile {config.profile}: a toy model on the CPU, NOT Step-3.7-Flash"
        )
    else:
        yield passed("hardware", hardware.describe(nodes))


def _is_laid_over(part: FleetPart) -> bool:
    """Whether the args have other `replicas` than the profile, but for what `auto` takes from the cluster."""
    try:
        own = profile.load_config({"profile": part.config.profile}, []).replicas
    except ConfigError:  # complete with the args only
        return True
    return own != part.config.replicas.model_copy(update={"max": own.max, "initial": own.initial})


def _model_of(part: FleetPart) -> str | None:
    """What two checkpoints of one model have in common; None where it is not known here."""
    source = part.config.model.source
    if source in memory.KNOWN:
        return "Step-3.7-Flash"
    if not Path(source).is_absolute():
        return source
    found = next((file for name in TOKENIZERS if (file := Path(source) / name).is_file()), None)
    return None if found is None else hashlib.sha256(found.read_bytes()).hexdigest()
