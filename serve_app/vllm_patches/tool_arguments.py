"""The arguments of one tool call: converts the model's `<parameter=KEY>VALUE</parameter>` into JSON as it comes.

vLLM converts the whole call again at each token, and sends the difference: the work grows with the square of a long
edit, and the result depends on where the tokens were cut. Here each character is read once, and the JSON only grows, so
that every way to cut the same text gives the same JSON.

The output is never completed: the JSON of a call that was cut off has no end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

import regex

Convert = Callable[[str, str], object]
"""The value of a key's text by the tool's schema."""

IsText = Callable[[str], bool]
"""Whether a key's value is always text by the tool's schema."""

OPEN: Final = regex.compile(r"<\s*parameter\s*=")
END_OF_VALUE: Final = regex.compile(r"<\s*/\s*parameter\s*>|<\s*parameter\s*=")
CLOSE: Final = regex.compile(r"<\s*/")


class _Place(Enum):
    BETWEEN = auto()
    KEY = auto()
    VALUE = auto()


class ToolArguments:
    """Text in, JSON out.

    Nothing is returned before a first value has begun (with `first_whole`: has ended), so that a call cut earlier has
    no arguments rather than empty ones.
    """

    def __init__(self, convert: Convert, is_text: IsText, *, first_whole: bool = False) -> None:
        self._convert = convert
        self._is_text = is_text
        self._first_whole = first_whole
        self._place = _Place.BETWEEN
        self._rest = ""
        self._body: list[str] = []
        self._key = ""
        self._parts: list[str] = []
        self._streams = False
        self._opened = False
        self._at_start = False
        self._count = 0

    def feed(self, text: str) -> str:
        """The further JSON that is certain after this text."""
        if not self._count and self._place is _Place.BETWEEN:
            self._body.append(text)
        self._rest += text
        out: list[str] = []
        while self._step(out):
            pass
        return "".join(out)

    @property
    def is_between(self) -> bool:
        """Whether no parameter is open."""
        return self._count > 0 and self._place is _Place.BETWEEN

    def close(self) -> str:
        """The rest of the JSON of a call that the model has ended. Models sometimes forget the last `</parameter>`."""
        out: list[str] = []
        if self._place is _Place.VALUE:
            self._end_value(self._rest, out)
        if self._count:
            out.append("}")
            return "".join(out)
        return self._plain_object()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _step(self, out: list[str]) -> bool:
        match self._place:
            case _Place.BETWEEN:
                return self._seek_parameter()
            case _Place.KEY:
                return self._seek_value()
            case _Place.VALUE:
                return self._go_on_with_value(out)

    def _seek_parameter(self) -> bool:
        found = OPEN.search(self._rest, partial=True)
        if found is None or found.partial:
            self._rest = self._rest[found.start() :] if found is not None else ""
            return False
        self._rest = self._rest[found.end() :]
        self._place = _Place.KEY
        return True

    def _seek_value(self) -> bool:
        key, end, rest = self._rest.partition(">")
        if not end:
            return False
        self._key, self._rest = key.strip(), rest
        self._parts = []
        self._streams = self._is_text(self._key) and not (self._first_whole and not self._count)
        self._opened = False
        self._at_start = True
        self._place = _Place.VALUE
        return True

    def _go_on_with_value(self, out: list[str]) -> bool:
        found = END_OF_VALUE.search(self._rest, partial=True)
        if found is not None and not found.partial:
            # A next `<parameter=` ends a value, too, and is not used up by that.
            rest = self._rest[found.end() if CLOSE.match(found.group()) else found.start() :]
            self._end_value(self._rest[: found.start()], out)
            self._rest = rest
            return True
        certain = found.start() if found is not None else len(self._rest)
        if certain and self._rest[certain - 1] == "\n":
            certain -= 1  # it may be the one that the template puts before `</parameter>`
        if certain:
            self._say(self._rest[:certain], out)
            self._rest = self._rest[certain:]
        return False

    def _say(self, text: str, out: list[str]) -> None:
        if self._at_start:
            self._at_start = False
            text = text.removeprefix("\n")
        if not text:
            return
        if not self._streams:
            self._parts.append(text)
            return
        if not self._opened:
            self._opened = True
            out.append(self._next_key() + '"')
        out.append(json.dumps(text, ensure_ascii=False)[1:-1])

    def _end_value(self, text: str, out: list[str]) -> None:
        # Not `_say(...removesuffix)`: a value of one line break alone is the template's first, not its last.
        if self._at_start and text.startswith("\n"):
            text, self._at_start = text[1:], False
        self._say(text.removesuffix("\n"), out)
        if self._opened:
            out.append('"')
        else:
            value = "" if self._streams else self._convert(self._key, "".join(self._parts))
            out.append(self._next_key() + json.dumps(value, ensure_ascii=False))
        self._count += 1
        self._body.clear()
        self._place, self._rest = _Place.BETWEEN, ""

    def _next_key(self) -> str:
        return (", " if self._count else "{") + json.dumps(self._key, ensure_ascii=False) + ": "

    def _plain_object(self) -> str:
        """A call without parameters, unless its body is a JSON object, as other models write their calls."""
        try:
            body = json.loads("".join(self._body))
        except ValueError:
            return "{}"
        return json.dumps(body, ensure_ascii=False) if isinstance(body, dict) else "{}"
