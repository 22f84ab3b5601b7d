"""The parts of a fleet: from `pools` in the configuration to one whole configuration each. A refusal names the line to
change.

A part is the application's `args` without `pools`, with the pool's own keys laid over them, over the pool's profile.
Ingresses go by the first part's configuration, and by the shortest context of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from serve_app.config import hardware, profile
from serve_app.config.hardware import NodeGpus
from serve_app.config.schema import AppConfig, ConfigError, FlagValue, flag
from serve_app.config.yaml_lines import KeyPath, YamlDocument

OVERLAID = ("profile", "model", "engine", "replicas")
"""The keys of a pool that are keys of the application, too."""

SAME_FLAGS = (
    *("reasoning-parser", "tool-call-parser", "enable-auto-tool-choice", "enable-prompt-tokens-details"),
    *("tokenizer", "tokenizer-mode", "chat-template", "default-chat-template-kwargs", "generation-config"),
    *("limit-mm-per-prompt", "mm-processor-kwargs", "structured-outputs-config", "logprobs-mode", "max-logprobs"),
)
"""Flags that the ingress acts on for every part: one tokenizer, one set of parsers, one set of limits."""

SAME_WEIGHTS = ("quantization", "dtype", "kv-cache-dtype", "hf-overrides", "load-format")
"""Flags that change what the same checkpoint answers."""


CANARY = "canary"
"""The name of the part that is on trial."""

ENGINE = "engine"
"""The name of the engine deployment, and how those of pools begin."""


@dataclass(frozen=True)
class FleetPart:
    """One engine deployment. `name` is its pool's; empty where there are no pools."""

    name: str
    config: AppConfig

    @property
    def deployment(self) -> str:
        """The name of its deployment."""
        return f"{ENGINE}-{self.name}" if self.name else ENGINE

    @property
    def weights(self) -> str:
        """What its answers come from, as a digest: checkpoint, revision, and how they are computed."""
        model, flags = self.config.model, self.config.engine.flags
        found: list[object] = [model.source, model.revision, {name: flag(flags, name) for name in SAME_WEIGHTS}]
        if self.config.engine.kind == "fake":
            found.append(self.config.engine.fake.get("plain_token_ids"))
        return hashlib.blake2b(json.dumps(found, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class FleetConfig:
    """`parts`, at least one, and what the ingresses go by."""

    parts: tuple[FleetPart, ...]
    ingress: AppConfig


def is_engine(deployment: str) -> bool:
    """Whether a deployment of this name has engine replicas."""
    return deployment == ENGINE or deployment.startswith(f"{ENGINE}-")


def single(config: AppConfig) -> FleetConfig:
    """A fleet without pools."""
    return FleetConfig((FleetPart("", config),), config)


def load(args: YamlDocument, nodes: Sequence[NodeGpus] | None) -> FleetConfig:
    """Read a configuration. Raises `ConfigError` for what cannot work, and for pools that cannot be mixed."""
    pools = args.values.get("pools")
    if not isinstance(pools, list) or not pools:
        return single(profile.load(args, nodes))
    checked = profile.load(_as_first(args, pools), nodes)  # with the lines of whatever is wrong in `pools`
    documents = [_part_args(args, number, pool) for number, pool in enumerate(pools)]
    parts = tuple(
        FleetPart(pool.name, profile.load(document, nodes))
        for pool, document in zip(checked.pools, documents, strict=True)
    )
    if refusals := list(mix_refusals(args, parts)):
        raise ConfigError("\n".join(refusals))
    return FleetConfig(parts, _for_ingresses(parts))


def load_args(args: Mapping[str, object], nodes: Sequence[NodeGpus] | None = None) -> FleetConfig:
    """The same of the application's arguments, whose lines are not known. Without `nodes` the connected Ray cluster is
    asked."""
    if nodes is None:
        nodes = hardware.cluster_nodes()
    return load(YamlDocument("args in deploy.yaml", args, {}), nodes)


def _as_first(args: YamlDocument, pools: Sequence[object]) -> YamlDocument:
    """All of the arguments, with the first pool's profile where it has one: `auto` may find none that fits."""
    named = [pool["profile"] for pool in pools if isinstance(pool, Mapping) and isinstance(pool.get("profile"), str)]
    values = {**args.values, **({"profile": named[0]} if named else {})}
    return YamlDocument(args.origin, values, args.lines)


def _part_args(args: YamlDocument, number: int, pool: Mapping[str, object]) -> YamlDocument:
    shared = {key: value for key, value in args.values.items() if key not in ("pools", "canary")}
    own = {key: value for key, value in pool.items() if key in OVERLAID and value is not None}
    prefix: KeyPath = ("pools", str(number))
    lines = {path[2:]: line for path, line in args.lines.items() if path[:2] == prefix and len(path) > 2}
    values = profile.merge(profile.normalise(shared), profile.normalise(own))
    return YamlDocument(args.origin, values, {**args.lines, **lines})


def mix_refusals(args: YamlDocument, parts: Sequence[FleetPart]) -> Iterator[str]:
    """Why these parts cannot be one fleet, a line each."""
    names = [part.name for part in parts]
    first = parts[0]
    if args.has(("replicas", "gpu_budget")):
        where = args.where(("replicas", "gpu_budget"))
        yield f"{where}: replicas.gpu_budget: each pool is scaled by itself; write its own budget into each pool"
    for number, part in enumerate(parts):
        where = args.where(("pools", str(number), "name"))
        if part.name == CANARY:
            yield f"{where}: pools: the name `{CANARY}` is kept for a canary"
        if part.name in names[:number]:
            yield f"{where}: pools: the name `{part.name}` is here a second time"
        if part.config.replicas.may_sleep:
            yield f"{where}: pools: `{part.name}` has `replicas.min: 0`, but nothing starts an empty pool"
        if part.config.engine.kind != first.config.engine.kind:
            yield f"{where}: pools: `{part.name}` has `engine.kind: {part.config.engine.kind}`, `{first.name}` another"
        if part.config.model.served_name != first.config.model.served_name:
            yield f"{where}: pools: `{part.name}` serves `{part.config.model.served_name}`, `{first.name}` another name"
        for name in SAME_FLAGS:
            ours, theirs = flag(part.config.engine.flags, name), flag(first.config.engine.flags, name)
            if ours != theirs:
                yield (
                    f"{where}: pools: `{name}` is {ours!r} in `{part.name}` and {theirs!r} in `{first.name}`: "
                    "ingresses act on it for all; set one in `engine.flags` of the application's args"
                )
    yield from _length_refusals(args, parts)


def _length_refusals(args: YamlDocument, parts: Sequence[FleetPart]) -> Iterator[str]:
    lengths = [max_model_len(part.config) for part in parts]
    if len(parts) == 1:
        return
    for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        if not isinstance(length, int):
            where = args.where(("pools", str(number), "engine", "flags", "max-model-len"))
            yield (
                f"{where}: pools: `max-model-len` is {length!r} in `{part.name}`: each pool would find a length of its "
                "own; write a number (the shortest of all pools counts)"
            )


def max_model_len(config: AppConfig) -> FlagValue:
    """The context of an engine in tokens, as its flags say it; for a fake engine, as it does itself."""
    if config.engine.kind == "fake":
        told = config.engine.fake.get("max_model_len", 8192)
        return told if isinstance(told, int) else None
    length = flag(config.engine.flags, "max-model-len")
    return None if length in ("auto", -1) else length


def _for_ingresses(parts: Sequence[FleetPart]) -> AppConfig:
    """The first part's configuration, with the number of all engines and the shortest context."""
    first = parts[0].config
    bounds = {
        "min": sum(one.config.replicas.min for one in parts),
        "max": sum(one.config.replicas.most for one in parts),
    }
    replicas = first.replicas.model_copy(update={**bounds, "initial": None, "gpu_budget": None})
    first = first.model_copy(update={"replicas": replicas})
    known = [length for part in parts if isinstance(length := max_model_len(part.config), int)]
    if first.engine.kind == "fake" or not known:
        return first
    flags: dict[str, FlagValue] = {**first.engine.flags, "max-model-len": min(known)}
    return first.model_copy(update={"engine": first.engine.model_copy(update={"flags": flags})})
