"""Writes `docs/configuration.md` from `config/schema.py` and its sections: types and docstrings are the source, so that
the page cannot say anything else."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from serve_app.cli import plan
from serve_app.config import profile
from serve_app.config.refused_flags import OWNED, UNREAD
from serve_app.config.schema import AppConfig
from serve_app.config.section import Section

INTRODUCTION = """\
# Configuration

Written by `python -m serve_app docs` from `serve_app/config/`; a test keeps it current.

A profile (`configs/<name>.yaml`) describes a hardware layout. The application's `args` in `deploy.yaml` are laid over
it, key by key; lists are replaced, and a flag set to `null` is taken away. Unknown keys are refused with the nearest
known one. `make preflight` checks both files in seconds, without starting anything.

```yaml
# deploy.yaml
applications:
  - args:
      profile: h100-x8
      model: {source: /models/Step-3.7-Flash}
      replicas: {min: 2, max: 4}
      engine: {flags: {max-num-seqs: 128}}
      ingress: {keys_file: keys.txt}
```

What is not the application's (address, HAProxy, timeouts) stands in `deploy.yaml` itself, with its reasons. Ray Serve
passes over keys there that it does not know; `make preflight` and `make serve` refuse them.
"""

_NAMES = {"bool": "true or false", "str": "text", "int": "whole number", "float": "number", "NoneType": "null"}


def configuration_page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _top(), *_sections(), _flags(), _profiles()]
    return "\n".join(parts)


def _top() -> str:
    rows = [_row(name, field) for name, field in AppConfig.model_fields.items() if _section(field) is None]
    return "\n".join(["## At the top", "", *_HEAD, *rows, ""])


def _sections() -> Iterator[str]:
    for name, field in AppConfig.model_fields.items():
        section = _section(field)
        if section is None:
            continue
        rows = [_row(inner, found) for inner, found in section.model_fields.items()]
        about = inspect.getdoc(section) or ""
        yield "\n".join([f"## `{name}`", "", about, "", *_HEAD, *rows, ""])


_HEAD = ("| key | value | default | |", "| --- | --- | --- | --- |")


def _section(field: FieldInfo) -> type[Section] | None:
    """The section of a field, of each entry of a list of them, or of one that may be left out."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return annotation
    return None


def _row(name: str, field: FieldInfo) -> str:
    default = "needed" if field.default is PydanticUndefined else f"`{_yaml(field.default)}`"
    about = " ".join((field.description or "").split())
    return f"| `{name}` | {_type(field)} | {default} | {about} |".replace("|  |", "| |")


def _yaml(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return "[" + ", ".join(_yaml(item) for item in value) + "]"
        case dict():
            return "{}" if not value else str(value)
        case _:
            return str(value)


def _type(field: FieldInfo) -> str:
    limits = {type(limit).__name__.lower(): limit for limit in field.metadata}
    words = _annotation(field.annotation)
    for key, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if key in limits:
            words += f", {sign} {getattr(limits[key], key):g}"
    return words


def _annotation(annotation: object) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is typing.Annotated:
        return _annotation(inner[0])
    if origin in {types.UnionType, typing.Union}:
        return " or ".join(_annotation(part) for part in inner)
    if origin is tuple:
        return f"list of {_annotation(inner[0])}"
    if origin is dict:
        return "keys and values"
    name = getattr(annotation, "__name__", str(annotation))
    return _NAMES.get(name, name)


def _flags() -> str:
    rows = [f"| `{flag}` | `{setting}` |" for flag, setting in OWNED.items()]
    unread = [f"| `{flag}` | {instead} |" for flag, instead in UNREAD.items()]
    return "\n".join(
        [
            "## `engine.flags`: which are refused",
            "",
            "Every flag of `vllm serve` can stand there, except these. `python -m serve_app argv` prints what the",
            "engine gets in the end. `default-chat-template-kwargs` are laid over the effort of",
            "`model.default_reasoning_effort`, key by key; they may not have `reasoning_effort` themselves.",
            "",
            "| flag | set by |",
            "| --- | --- |",
            *rows,
            "",
            "These would have no effect, for vLLM's own server and launcher do not run here:",
            "",
            "| flag | instead |",
            "| --- | --- |",
            *unread,
            "",
        ]
    )


def _profiles() -> str:
    table = "\n".join(plan.table(profile.profile_names()))
    return f"## Profiles\n\n`python -m serve_app plan`:\n\n```\n{table}\n```\n"
