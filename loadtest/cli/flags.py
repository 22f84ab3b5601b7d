"""How flags are declared: each once, with the field of the specification that it fills, and with its own check.

A flag's default is that of its field. Argparse applies the checks, so a wrong value is refused under its flag's name
before anything starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from loadtest.data.prompt import Json

MAX_WORKERS = 64
"""More client processes than this are taken for a typing error."""
MAX_PORT = 65_535
MAX_RATIOS = 2
"""One for prompts, one for answers."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag. `options` are those of `ArgumentParser.add_argument`."""

    field: str
    names: tuple[str, ...]
    options: Mapping[str, Any]


def flag(field: str, *names: str, **options: Any) -> Flag:
    """Declare a flag that fills `field`."""
    return Flag(field, names, options)


@dataclasses.dataclass(frozen=True)
class FlagGroup:
    """Flags under one heading of the help, and the frozen dataclass that they fill; None where they fill none."""

    title: str | None
    spec: type[Any] | None
    flags: tuple[Flag, ...]

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags to a parser."""
        group = parser.add_argument_group(self.title) if self.title else parser
        defaults = {field.name: _default(field) for field in dataclasses.fields(self.spec)} if self.spec else {}
        for one in self.flags:
            options = dict(one.options)
            if "action" not in options or options["action"] in ("append", "extend", argparse.BooleanOptionalAction):
                options.setdefault("default", defaults.get(one.field))
            shown = options.get("default")
            if (
                isinstance(shown, int | float | str)
                and not isinstance(shown, bool)
                and shown not in ("", math.inf)
                and "default" not in options["help"]
            ):
                options["help"] += f" (default {shown:g})" if isinstance(shown, float) else f" (default {shown})"
            group.add_argument(*one.names, dest=one.field, **options)

    def values(self, args: argparse.Namespace) -> dict[str, Any]:
        """The values of the specification's fields."""
        names = {field.name for field in dataclasses.fields(self.spec)} if self.spec else set()
        return {one.field: getattr(args, one.field) for one in self.flags if one.field in names}


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; None where it has none. Collections start empty: argparse appends to a list."""
    if field.default is dataclasses.MISSING:
        return None if field.default_factory is dataclasses.MISSING else []
    return [] if field.default == () else field.default


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number within bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"takes a whole number, not {text!r}") from None
        if value < low:
            raise ArgumentTypeError(f"must be at least {low}, not {value}")
        if high is not None and value > high:
            raise ArgumentTypeError(f"must be at most {high}, not {value}")
        return value

    return read


def positive(text: str) -> float:
    """A number above 0, possibly infinite."""
    value = _number(text)
    if value <= 0:
        raise ArgumentTypeError(f"must be above 0, not {text}")
    return value


def seconds(text: str) -> float:
    """A finite time of at least 0."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"takes a time of at least 0, not {text}")
    return value


def milliseconds(text: str) -> float:
    """A time in ms, as seconds."""
    return seconds(text) / 1000


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"takes a number, not {text!r}") from None
    if math.isnan(value):
        raise ArgumentTypeError("takes a number, not nan")
    return value


def ratios(text: str) -> tuple[float, ...]:
    """One or two shares from 0 to below 1."""
    values = tuple(_number(part) for part in text.split(","))
    if not all(0 <= value < 1 for value in values) or len(values) > MAX_RATIOS:
        raise ArgumentTypeError(f"takes numbers from 0 to below 1, e.g. 0.2 or 0.2,0.5, not {text!r}")
    return values


def ratio(text: str) -> float:
    """A share from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"takes a share from 0 to 1, not {text}")
    return value


def percentiles(text: str) -> tuple[float, ...]:
    """Comma-separated percentiles."""
    values = tuple(_number(part) for part in text.split(","))
    if not all(0 <= value <= 100 for value in values):
        raise ArgumentTypeError(f"takes numbers from 0 to 100, e.g. 50,99, not {text!r}")
    return values


def stream_counts(text: str) -> list[int]:
    """Comma-separated numbers of streams."""
    return [whole(1)(part) for part in text.split(",")]


def image_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ArgumentTypeError(f"takes a size such as 448x448, not {text!r}")
    return int(width), int(height)


def worker_count(text: str) -> int | None:
    """`auto` (None) or a number of client processes."""
    if text == "auto":
        return None
    if not text.isdigit() or not 1 <= int(text) <= MAX_WORKERS:
        raise ArgumentTypeError(f"takes auto or a number from 1 to {MAX_WORKERS}, not {text!r}")
    return int(text)


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not text.isprintable():
        raise ArgumentTypeError(f"takes name=value, not {text!r}")
    return name.strip(), value.strip()


def goodput_limit(text: str) -> tuple[str, float]:
    """METRIC:MS, as vLLM's --goodput takes it."""
    name, _, limit = text.partition(":")
    if name not in ("ttft", "tpot", "e2el") or not limit.replace(".", "", 1).isdigit():
        raise ArgumentTypeError(f"takes ttft, tpot or e2el with a limit in ms, e.g. ttft:3000 tpot:30, not {text!r}")
    return name, float(limit)


def timed_command(text: str) -> tuple[float, str]:
    """SECONDS:COMMAND."""
    moment, colon, command = text.partition(":")
    moment = moment.strip().removesuffix("s")
    if not colon or not moment.replace(".", "", 1).isdigit() or not command.strip():
        raise ArgumentTypeError(f"takes seconds and a command, e.g. '30:kill 1234', not {text!r}")
    return float(moment), command


def bounds_text(text: str) -> str:
    """Objectives that are not empty, which an unset variable in CI would make them."""
    if not text.strip():
        raise ArgumentTypeError("is empty: write e.g. 'ttft_p99<3s'")
    return text


def json_object(text: str) -> dict[str, Json]:
    """A JSON object."""
    try:
        value = msgspec.json.decode(text.encode())
    except msgspec.DecodeError as bad:
        raise ArgumentTypeError(f"""is not JSON ({bad}): write e.g. '{{"top_k": 1}}'""") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"""takes a JSON object, e.g. '{{"top_k": 1}}', not {text}""")
    return value
