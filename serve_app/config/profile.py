"""Reads a configuration: a profile's file with deploy.yaml's `args` laid over it. A refusal names the line to
change."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import pydantic
import pydantic_core

from serve_app.config import hardware, yaml_lines
from serve_app.config.hardware import NodeGpus, NoProfileFits, ProfileChoice, choose_profile
from serve_app.config.schema import AppConfig, ConfigError
from serve_app.config.section import Section, WrongKey
from serve_app.config.yaml_lines import BadYaml, KeyPath, YamlDocument

ROOT = Path(__file__).resolve().parents[2]
"""The repository, or the copy of it that Ray unpacked on a node (`working_dir`)."""
PROFILES = ROOT / "configs"

MOVED = {
    "ingress.max_queued_requests": "`replicas.max_queued_requests`; it counts for each engine, not for each ingress"
}
"""Former keys, by their present name."""

logger = logging.getLogger(__name__)


def load(args: YamlDocument, nodes: Sequence[NodeGpus] | None) -> AppConfig:
    """Read a configuration. Raises `ConfigError` for what cannot work. `nodes` are used for `profile: auto` only."""
    wanted = str(args.values.get("profile", "auto"))
    choice = _choose(wanted, nodes) if wanted == "auto" else None
    if choice is not None:
        log = logger.warning if choice.is_demo else logger.info
        log("profile_chosen %s", choice.reason)
    profile = read_profile(choice.profile if choice else wanted, args)
    values = merge(normalise(profile.values), normalise(args.values))
    values["profile"] = choice.profile if choice else wanted
    if choice is not None:
        values = merge(values, _grown(choice, values, args))
    try:
        config = AppConfig.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(_refusal(item, (args, profile)) for item in error.errors())) from error
    keys = config.ingress.keys_file
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"source": resolve(config.model.source)}),
            "ingress": config.ingress.model_copy(update={"keys_file": keys and str(_absolute(keys))}),
        }
    )


def _choose(wanted: str, nodes: Sequence[NodeGpus] | None) -> ProfileChoice:
    if nodes is None:
        raise ConfigError("`profile: auto` needs a running Ray cluster to look at; name one of configs/ instead")
    try:
        return choose_profile(nodes)
    except NoProfileFits as error:
        raise ConfigError(f"profile: {wanted}: {error}") from error


def _grown(choice: ProfileChoice, values: Mapping[str, object], args: YamlDocument) -> dict[str, object]:
    """Values that `auto` takes from the cluster, unless deploy.yaml sets them."""
    replicas = values.get("replicas")
    least = replicas.get("min", 1) if isinstance(replicas, Mapping) else 1
    known: dict[str, object] = {"max": max(choice.room, least) if isinstance(least, int) else choice.room}
    if choice.accelerator is not None:
        known["accelerator_type"] = choice.accelerator
    return {"replicas": {name: value for name, value in known.items() if not args.has(("replicas", name))}}


def read_profile(wanted: str, args: YamlDocument) -> YamlDocument:
    """`configs/<wanted>.yaml`, or a path to such a file (relative to the repository, else to the working directory)."""
    by_path = wanted.endswith((".yaml", ".yml"))
    candidates = [ROOT / wanted, Path(wanted)] if by_path else [PROFILES / f"{wanted}.yaml"]
    for file in candidates:
        if file.is_file():
            try:
                return yaml_lines.read(file, str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file))
            except BadYaml as error:
                raise ConfigError(str(error)) from error
    names = profile_names()
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"there are: auto, {', '.join(names)}"
    raise ConfigError(f"{args.where(('profile',))}: profile: no file {candidates[0].name} in configs/; {hint}")


def source_location(profile: str, path: KeyPath) -> str:
    """`file:line` of the key in the profile's file; where that file does not have it, deploy.yaml sets it."""
    document = read_profile(profile, YamlDocument(profile, {}, {}))
    return document.where(path) if document.has(path) else "args in deploy.yaml"


def profile_names() -> list[str]:
    """The names in configs/."""
    return sorted(file.stem for file in PROFILES.glob("*.yaml"))


def normalise(values: Mapping[str, object]) -> dict[str, object]:
    """The values with dashes in flag names, so that one spelling overrides the other."""
    result = dict(values)
    engine = values.get("engine")
    if isinstance(engine, Mapping) and isinstance(engine.get("flags"), Mapping):
        flags = {str(name).replace("_", "-"): value for name, value in engine["flags"].items()}
        result["engine"] = {**engine, "flags": flags}
    return result


def merge(under: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`over` laid on `under`: mappings key by key, everything else replaced."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def resolve(source: str) -> str:
    """A path becomes absolute; a hub id stays. `models/x` is a path (`models` is a folder here), `org/x` is none."""
    path = _absolute(source)
    parts = Path(source).parts
    like_a_hub_id = len(parts) == 2 and parts[0] not in {"/", "..", "~"} and not source.startswith(".")
    known_folder = path.exists() or (ROOT / parts[0]).is_dir()
    return source if like_a_hub_id and not known_folder else str(path)


def _absolute(name: str) -> Path:
    """The absolute path: relative to the repository, or to the working directory where only that has it."""
    path = Path(name).expanduser()
    here = Path.cwd() / path
    return here if here.exists() and not (ROOT / path).exists() else ROOT / path


def _refusal(error: pydantic_core.ErrorDetails, documents: Sequence[YamlDocument]) -> str:
    path: KeyPath = tuple(str(part) for part in error["loc"])
    cause = error.get("ctx", {}).get("error")
    told = [(*path, *key) for key in cause.paths] if isinstance(cause, WrongKey) else [path]
    where = _place(told, documents)
    key = ".".join(path) or "(top)"
    if key in MOVED:
        return f"{where}: `{key}` is now {MOVED[key]}"
    if error["type"] == "extra_forbidden":
        names = _fields_at(path[:-1])
        near = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(names)}"
        return f"{where}: unknown key `{key}`; {hint}"
    if error["type"] == "missing":
        return f"{where}: `{key}` is needed and not there"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        message = f"{message}: write it in quotes"
    if not path and isinstance(cause, WrongKey):
        return f"{where}: {message}"  # it names the key
    return f"{where}: {key}: {message[:1].lower()}{message[1:]}"


def _place(paths: Sequence[KeyPath], documents: Sequence[YamlDocument]) -> str:
    """`file:line` of the first of these keys that is set, by the document that wins; where none is, of what is nearest
    above the first one."""
    for document in documents:
        for path in paths:
            if document.has(path):
                return document.where(path)
    path = paths[0]
    for length in range(len(path) - 1, 0, -1):
        for document in documents:
            if document.has(path[:length]):
                return document.where(path)
    return documents[-1].where(path)


def _fields_at(path: KeyPath) -> list[str]:
    section: type[Section] = AppConfig
    for name in path:
        if name.isdecimal():
            continue  # in a list
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        annotation = next((one for one in get_args(annotation) if _is_section(one)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return []
        section = annotation
    return [field.alias or name for name, field in section.model_fields.items()]


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def load_config(args: Mapping[str, object], nodes: Sequence[NodeGpus] | None = None) -> AppConfig:
    """The application's arguments, laid over the profile they name. Raises `ConfigError`.

    `nodes` are what `profile: auto` chooses by; without them the connected Ray cluster is asked.
    """
    if nodes is None and args.get("profile", "auto") == "auto":
        nodes = hardware.cluster_nodes()
    return load(YamlDocument("args in deploy.yaml", args, {}), nodes)
