"""The record of what was changed in a request and what was left out: for a response header and the log.

Agents send much that only their vendor's own service can do (hosted web search, documents, remote MCP servers). None of
it may fail a turn, and none may be dropped silently.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HEADER = b"x-step-ignored"

MAX_HEADER_CHARS = 1024
"""A long conversation may hold hundreds of such parts; proxies limit all headers together to some 8 KB."""


@dataclass
class Edits:
    """Collected while a request is prepared. `ignored` has an entry `field (what)` for each part left out or
    simplified."""

    ignored: list[str] = field(default_factory=list)
    changed: bool = False

    def note(self, path: str, what: str) -> None:
        """A part of the request at `path` was left out, or is given to the model as plain text."""
        self.ignored.append(f"{path} ({what})")
        self.changed = True


def header_value(ignored: list[str]) -> bytes:
    """`ignored` for a header: one line, Latin-1, of bounded length."""
    text = ""
    for number, entry in enumerate(ignored):
        more = f", and {len(ignored) - number} more" if text else f"{len(ignored)} parts of the request"
        line = "".join(char if " " <= char <= "~" else "?" for char in entry[:160])
        longer = f"{text}, {line}" if text else line
        if len(longer) > MAX_HEADER_CHARS - 20:
            return (text + more).encode("ascii")
        text = longer
    return text.encode("ascii")
