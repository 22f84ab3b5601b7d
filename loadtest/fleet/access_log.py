"""The replica of each request from this project's access log, for responses that do not name it.

A line of the log ends in `serve_app.access: request {...}`, whose JSON has the request's `id`, which this client sets,
and the replicas that ran it (docs/operations.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtest.errors import DataError

MARK = b"serve_app.access: request "


class _Line(msgspec.Struct):
    id: str
    replica: list[str] = []


def read_replicas(files: Sequence[str], request_id_prefix: str) -> dict[int, str]:
    """The last replica of each request of this run, by the request's index. Raises DataError."""
    found: dict[int, str] = {}
    decoder = msgspec.json.Decoder(_Line)
    for file in files:
        try:
            with Path(file).open("rb") as lines:
                for line in lines:
                    _, mark, content = line.partition(MARK)
                    if not mark or request_id_prefix.encode() not in content:
                        continue
                    entry = _decode(decoder, content)
                    number = entry.id.removeprefix(request_id_prefix) if entry is not None else ""
                    if entry is not None and number.isdecimal() and entry.replica:
                        found[int(number)] = entry.replica[-1]
        except OSError as bad:
            raise DataError(f"cannot read {file!r} ({bad.strerror})", "Check --access-log") from bad
    return found


def _decode(decoder: msgspec.json.Decoder[_Line], content: bytes) -> _Line | None:
    """None for a line that is cut, as the last one of a log in use may be."""
    try:
        return decoder.decode(content[: content.rfind(b"}") + 1])  # a terminal's colour codes may follow
    except msgspec.DecodeError:
        return None
