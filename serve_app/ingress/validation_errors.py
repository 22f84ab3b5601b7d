"""Pydantic's errors about a request as one sentence, with the path of the field.

Pydantic reports every branch of a union (`messages`, `input`, `content`: up to dozens of errors for one wrong field),
with the names of its own types in the paths. Here each path is followed through the request itself, so that only fields
of the request stay in it; of a union only the branch counts that the value was meant for; and errors of one field are
put together ("must be a string or an array").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from serve_app.ingress.error_format import NOT_VALID, plain_sentence

DISCRIMINATORS = ("type", "role")
"""The fields that select the branch of a union."""

KINDS = {
    "string_type": "a string",
    "string_sub_type": "a string",
    "bytes_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "tuple_type": "an array",
    "set_type": "an array",
    "iterable_type": "an array",
    "iteration_error": "an array",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "typed_dict_type": "an object",
    "dataclass_type": "an object",
    "none_required": "null",
}
"""What a value must be, in JSON's words, by pydantic's error type."""

BOUNDS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "of at least {min_length} elements",
    "too_long": "of at most {max_length} elements",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "string_pattern_mismatch": "a string that matches {pattern}",
}

VALUES_SHOWN = 12
"""How many allowed values a sentence lists; the longest lists (tool types) would fill a screen."""

LISTS_SEARCHED = 500
"""Lists of a request that are searched for the one that an error is about; a long conversation has as many."""

PATH_SEGMENT = re.compile(r"[A-Za-z_][\w.\-]{0,63}")

ErrorDetails = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a request. `param` is the field's path, None where no single field is at fault."""

    message: str
    param: str | None


@dataclass(frozen=True)
class _Fault:
    """One of pydantic's errors with its path in the request, and the branches of unions that it belongs to."""

    path: tuple[str | int, ...]
    branches: tuple[tuple[int, str | int], ...]
    details: ErrorDetails

    @property
    def kind(self) -> str:
        return str(self.details.get("type", ""))

    @property
    def misses_its_branch(self) -> bool:
        """Whether it only shows that the value is meant for another branch of a union."""
        at_discriminator = bool(self.path) and self.path[-1] in DISCRIMINATORS
        return at_discriminator and self.kind in ("literal_error", "enum", "missing")


def describe(errors: Sequence[object], body: object = None) -> Problem:
    """The one sentence about `errors` (`ValidationError.errors()`). `body` is the request they are about, if known."""
    details = [error for error in errors if isinstance(error, Mapping)]
    faults = [_locate(error, body) for error in details]
    if not faults:
        return Problem(plain_sentence(str(errors[0]) if errors else "", NOT_VALID), None)
    for fault in faults:
        if fault.kind in ("json_invalid", "json_type"):
            return Problem(_broken_json(fault.details), None)
    field = faults[0].path[:1]
    chosen = _meant([fault for fault in faults if fault.path[:1] == field])
    path = max((fault.path for fault in chosen), key=len)
    together = [fault for fault in chosen if fault.path == path]
    return _sentence(path, together)


def _locate(error: ErrorDetails, body: object) -> _Fault:
    """Separate the parts of pydantic's path into fields of the request and branches of unions."""
    loc = list(error.get("loc") or ())
    if loc and loc[0] in ("body", "query", "path", "header"):
        loc = loc[1:]
    if loc and isinstance(loc[0], int) and not isinstance(body, list):
        # Some lists are read lazily: the path of an error in them begins at the list.
        for start, inner in islice(_lists(body), LISTS_SEARCHED):
            fault, value = _walk(error, loc, inner)
            if value == error.get("input"):
                return _Fault(start + fault.path, fault.branches, error)
        return _walk(error, loc[1:], None)[0]  # it is not known which list
    return _walk(error, loc, body)[0]


def _walk(error: ErrorDetails, loc: list[str | int], body: object) -> tuple[_Fault, object]:
    """The fault, and the value at the end of its path."""
    path: list[str | int] = []
    branches: list[tuple[int, str | int]] = []
    names_what_is_not_there = error.get("type") in ("missing", "extra_forbidden", "value_error")
    value = body
    for position, part in enumerate(loc):
        if body is None:
            is_field = _looks_like_a_field(part)
        else:
            is_field = _is_in(value, part)
            if is_field:
                value = value[part]  # type: ignore[index]  # `_is_in` has looked
            is_field = is_field or (names_what_is_not_there and position == len(loc) - 1)
        if is_field:
            path.append(part)
        else:
            branches.append((len(path), part))
    return _Fault(tuple(path), tuple(branches), error), value


def _lists(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], list[object]]]:
    """Every list in a request, with its path."""
    if isinstance(value, list):
        yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _lists(item, (*path, key))


def _is_in(value: object, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value)


def _looks_like_a_field(part: object) -> bool:
    """Whether a part of pydantic's path is a field's name, where there is no request to compare: type names have
    capitals or brackets."""
    if isinstance(part, int):
        return True
    text = str(part)
    return re.fullmatch(r"[a-z_][a-z0-9_]*", text) is not None and text not in {
        "str", "int", "float", "bool", "list", "dict", "none", "nullable", "union", "constrained", "is_instance",
    }  # fmt: skip


def _meant(faults: list[_Fault]) -> list[_Fault]:
    """The faults of the union branch that the value was meant for: the one whose `type` or `role` it has."""
    missed = {
        fault.branches[: index + 1]
        for fault in faults
        if fault.misses_its_branch
        for index, (depth, _) in enumerate(fault.branches)
        if depth == len(fault.path) - 1
    }
    rest = [
        fault
        for fault in faults
        if not any(fault.branches[: index + 1] in missed for index in range(len(fault.branches)))
    ]
    # A branch of another JSON type tells nothing about the value ("must be a string", of an array).
    deepest = max((len(fault.path) for fault in rest), default=0)
    if any(len(fault.path) < deepest for fault in rest):
        rest = [fault for fault in rest if len(fault.path) == deepest]
    return rest or faults


def _sentence(path: tuple[str | int, ...], faults: list[_Fault]) -> Problem:
    param = _param(path)
    name = f"`{param}`" if param else "The request body"
    kinds = {fault.kind for fault in faults}
    own = [_validator_message(fault) for fault in faults if fault.kind in ("value_error", "assertion_error")]
    if own and own[0] is not None:
        return own[0] if own[0].param or not param else Problem(own[0].message, param)
    if "union_tag_not_found" in kinds:
        field = str((faults[0].details.get("ctx") or {}).get("discriminator", "type")).strip("'")
        param = f"{param}.{field}" if param else field
        return Problem(f"`{param}` is required.", param)
    if "missing" in kinds:
        return Problem(f"{name} is required.", param)
    if kinds & {"extra_forbidden", "unexpected_keyword_argument"}:
        return Problem(f"{name} is not a known field.", param)
    values = list(dict.fromkeys(name for fault in faults for name in _allowed_values(fault)))
    wanted = list(dict.fromkeys(word for fault in faults if (word := _wanted(fault)) is not None))
    if values:
        shown = ", ".join(f'"{value}"' for value in values[:VALUES_SHOWN]) + (" ..." if values[VALUES_SHOWN:] else "")
        wanted.append(shown if len(values) == 1 else f"one of {shown}")
    if not wanted:
        return Problem(f"{name} is not valid.", param)
    return Problem(f"{name} must be {' or '.join(wanted)}.", param)


def _wanted(fault: _Fault) -> str | None:
    if fault.kind in KINDS:
        return KINDS[fault.kind]
    if fault.kind in BOUNDS:
        try:
            return BOUNDS[fault.kind].format(**(fault.details.get("ctx") or {}))
        except (KeyError, IndexError):
            return None
    return None


def _allowed_values(fault: _Fault) -> list[str]:
    context = fault.details.get("ctx") or {}
    expected = str(context.get("expected") or context.get("expected_tags") or "")
    if fault.kind not in ("literal_error", "enum", "union_tag_invalid") or not expected:
        return []
    return re.findall(r"'([^']*)'", expected) or [expected]


def _validator_message(fault: _Fault) -> Problem | None:
    """The message of a validator of vLLM's, with the field that it names."""
    cause = (fault.details.get("ctx") or {}).get("error")
    text = str(cause.args[0]) if isinstance(cause, Exception) and cause.args else ""
    parameter = getattr(cause, "parameter", None)
    message = plain_sentence(text, "")
    return Problem(message, parameter if isinstance(parameter, str) else None) if message else None


def _broken_json(details: ErrorDetails) -> str:
    reason = str((details.get("ctx") or {}).get("error", ""))
    place = (details.get("loc") or ("",))[-1]
    where = f" (character {place}: {reason})" if isinstance(place, int) and reason else ""
    return plain_sentence(f"The request body is not valid JSON{where}.", "The request body is not valid JSON.")


def _param(path: tuple[str | int, ...]) -> str | None:
    """The path with dots. It ends where a part is not a field's name (a key of a map can be anything)."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, str) and not PATH_SEGMENT.fullmatch(part):
            break
        parts.append(str(part))
    return ".".join(parts) or None
