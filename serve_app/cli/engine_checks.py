"""Checks of what only an engine's replica, or nobody at all, would notice otherwise: options of a fake engine, a GPU
model that no node has, an objective that changes nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from serve_app.cli.check import Check, CheckStatus, failed
from serve_app.config.fleet import FleetConfig
from serve_app.config.replicas import accelerator_names
from serve_app.config.schema import AppConfig


def engine_checks(config: AppConfig) -> Iterator[Check]:
    """One part's engines can be made, and placed some day."""
    if config.engine.kind == "fake":
        yield from _fake_checks(config)
    kind = config.replicas.accelerator_type
    if kind is None or kind in (known := accelerator_names()):
        return
    # Other GPUs exist, and Ray has a name for each: no refusal.
    near = difflib.get_close_matches(kind, known, n=1)
    advice = f"did you mean `{near[0]}`?" if near else "compare it with `accelerator_type:...` in `ray status`"
    message = f"replicas.accelerator_type: {kind!r} is no GPU model that is known here"
    yield Check(CheckStatus.WARN, "hardware", f"{message}: without such a node an engine waits for ever", advice)


def _fake_checks(config: AppConfig) -> Iterator[Check]:
    from serve_app.engine.fake_config import fake_engine_config  # with its tokenizers, which no other start needs

    try:
        fake_engine_config(config.engine.fake, tokenizer=config.model.source)
    except ValueError as error:
        advice = "correct `engine.fake` in the args of deploy.yaml (serve_app/engine/fake_config.py has the options)"
        yield failed("engine", f"engine.fake: {error}", advice)


def slo_checks(fleet: FleetConfig) -> Iterator[Check]:
    """An objective has a number of engines to change."""
    bounds = [part.config.replicas for part in fleet.parts]
    if not fleet.ingress.slo.is_set or any(replicas.min < replicas.most for replicas in bounds):
        return
    first = bounds[0]
    why = f"max = {first.max}" if first.most == first.max else f"what gpu_budget ({first.gpu_budget}) allows"
    each = "" if len(bounds) == 1 else " in every pool"
    message = f"nothing to scale, replicas.min = {why if len(bounds) == 1 else 'max'}{each}: it has no effect"
    yield Check(CheckStatus.WARN, "slo", message, "raise replicas.max, or remove slo")
