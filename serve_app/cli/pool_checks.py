"""Checks of what pools have in common: one model, whatever its precision, with one tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from serve_app.cli.check import Check, CheckStatus, failed, passed
from serve_app.config import memory
from serve_app.config.fleet import FleetConfig, FleetPart

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


def _model_of(part: FleetPart) -> str | None:
    """What two checkpoints of one model have in common; None where it is not known here."""
    source = part.config.model.source
    if source in memory.KNOWN:
        return "Step-3.7-Flash"
    if not Path(source).is_absolute():
        return source
    found = next((file for name in TOKENIZERS if (file := Path(source) / name).is_file()), None)
    return None if found is None else hashlib.sha256(found.read_bytes()).hexdigest()
