"""Traces: the requests of a period, without their texts. Read from a file, or from the access log.

A trace is a JSONL file, one request a line, in any order:

    {"arrival_s": 12.5, "prompt_tokens": 8000, "output_tokens": 300, "session": "s1", "prefix_tokens": 6000, "key": "k"}

`python -m loadtest run --trace` replays the same file. Mooncake's traces (`timestamp` in ms, `input_length`,
`output_length`, `hash_ids` of blocks of 512 tokens) are read as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

One = TypeVar("One")

BLOCK_TOKENS = 512
"""Of a Mooncake trace."""

ACCESS_LINE = re.compile(r"^(?:\(.*?\) )?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \w+ serve_app\.access: request (\{.*)$")
"""A line of the access log; Ray may put the name of the process before it."""

REFUSED = (429, 503)


class BadTrace(ValueError):
    """A file that is no trace. The message names the line."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request. It arrives `arrival_s` after the trace begins. The first `prefix_tokens` of its prompt were in
    earlier requests of its `session` (empty: it has none), so a replica that ran one of those may have them cached.
    `key` names its client."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    session: str = ""
    prefix_tokens: int = 0
    key: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """What became of a recorded request: seconds from its arrival to its first token and to its end; `replica` ran it
    last. `ttft_s` is None where it was refused or failed."""

    request: TraceRequest
    ttft_s: float | None
    total_s: float
    replica: str


@dataclass(frozen=True)
class Recording:
    """The requests of an access log, the first of which arrived at `begin_unix_s`."""

    begin_unix_s: float
    served: list[Served]

    @property
    def requests(self) -> list[TraceRequest]:
        """As a trace."""
        return [one.request for one in self.served]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    session: str = ""
    prefix_tokens: int = 0
    key: str = ""


class _MooncakeLine(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


class _LogLine(msgspec.Struct, frozen=True):
    status: int
    outcome: str
    route: str
    prompt_tokens: int
    output_tokens: int
    total_s: float
    cached_tokens: int = 0
    first_token_s: float | None = None
    key: str | None = None
    session: str | None = None
    replica: list[str] = []


def read_trace(path: Path) -> list[TraceRequest]:
    """The requests of a file, in the order of their arrival, the first at 0. Raises `BadTrace` with the line's number
    for a line that is no request, and for a file without any."""
    blocks = _Blocks()
    found = []
    for number, line in _lines(path):
        try:
            request = _parse(line, blocks)
        except msgspec.MsgspecError as error:
            raise BadTrace(f"{path}, line {number}: {error}") from error
        if wrong := _wrong(request):
            raise BadTrace(f"{path}, line {number}: {wrong}")
        found.append(request)
    if not found:
        raise BadTrace(f"{path} has no requests")
    return _from_zero(found, lambda one: one.arrival_s, lambda one, at_s: replace(one, arrival_s=at_s))


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> None:
    """Write a file that `read_trace` and the load test read."""
    lines = (msgspec.json.encode(_Line(*(getattr(one, name) for name in _Line.__struct_fields__))) for one in requests)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def read_access_log(paths: Sequence[Path]) -> Recording:
    """The requests of generations in these logs of ingresses, in the order of their arrival, the first at 0. Other
    lines are passed over. Raises `BadTrace` where a line of the access log has not the fields of one, or there is none.

    A log has no texts: what a request could have found cached is what it did find cached."""
    found: list[Served] = []
    for path in paths:
        for number, line in _lines(path):
            matched = ACCESS_LINE.match(line.decode(errors="replace"))
            if matched is None:
                continue
            try:
                entry = msgspec.json.decode(matched[2], type=_LogLine)
            except msgspec.MsgspecError as error:
                raise BadTrace(f"{path}, line {number}: {error}") from error
            if entry.prompt_tokens and (entry.output_tokens or entry.status in REFUSED):
                # The log's times are local ones, as `logging` writes them.
                ended_s = datetime.strptime(matched[1], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
                found.append(_served(entry, ended_s))
    if not found:
        raise BadTrace(f"{', '.join(map(str, paths))}: no requests with tokens in `serve_app.access` lines")
    begin_s = min(one.request.arrival_s for one in found)
    moved = _from_zero(
        found,
        lambda one: one.request.arrival_s,
        lambda one, at_s: replace(one, request=replace(one.request, arrival_s=at_s)),
    )
    return Recording(begin_s, moved)


def _served(entry: _LogLine, ended_s: float) -> Served:
    request = TraceRequest(
        ended_s - entry.total_s,
        entry.prompt_tokens,
        max(entry.output_tokens, 1),
        entry.session or "",
        min(entry.cached_tokens, entry.prompt_tokens - 1),
        entry.key or "",
    )
    replica = entry.replica[-1] if entry.replica else ""
    return Served(request, entry.first_token_s if entry.output_tokens else None, entry.total_s, replica)


def _lines(path: Path) -> Iterable[tuple[int, bytes]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadTrace(f"cannot read {path}: {error.strerror}") from error
    return ((number, line) for number, line in enumerate(data.splitlines(), start=1) if line.strip())


def _parse(line: bytes, blocks: _Blocks) -> TraceRequest:
    if b'"input_length"' not in line:
        one = msgspec.json.decode(line, type=_Line)
        return TraceRequest(
            one.arrival_s, one.prompt_tokens, one.output_tokens, one.session, one.prefix_tokens, one.key
        )
    other = msgspec.json.decode(line, type=_MooncakeLine)
    prefix_tokens = min(blocks.seen(other.hash_ids), max(other.input_length - 1, 0))
    session = f"block-{other.hash_ids[0]}" if other.hash_ids else ""
    return TraceRequest(other.timestamp / 1000, other.input_length, max(other.output_length, 1), session, prefix_tokens)


def _wrong(request: TraceRequest) -> str:
    if request.arrival_s < 0:
        return f"arrival_s is {request.arrival_s}: it counts from the trace's beginning"
    for name in ("prompt_tokens", "output_tokens"):
        if getattr(request, name) < 1:
            return f"{name} is {getattr(request, name)}: there is one at least"
    if not 0 <= request.prefix_tokens < request.prompt_tokens:
        return f"prefix_tokens ({request.prefix_tokens}) is not below prompt_tokens ({request.prompt_tokens})"
    if request.prefix_tokens and not request.session:
        return "prefix_tokens without a session: what was in earlier requests of a session is meant"
    return ""


class _Blocks:
    """The chains of blocks that earlier requests of a trace had."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, int], int] = {}

    def seen(self, hash_ids: list[int]) -> int:
        """How many tokens of these blocks an earlier request began with. They are remembered."""
        at, tokens, is_new = 0, 0, False
        for hash_id in hash_ids:
            number = self._next.get((at, hash_id))
            if number is None:
                is_new = True
                number = self._next[at, hash_id] = len(self._next) + 1
            tokens += 0 if is_new else BLOCK_TOKENS
            at = number
        return tokens


def _from_zero(found: list[One], of: Callable[[One], float], moved: Callable[[One, float], One]) -> list[One]:
    found.sort(key=of)
    begin_s = of(found[0])
    return [moved(one, of(one) - begin_s) for one in found]


def facts(requests: list[TraceRequest]) -> Mapping[str, float]:
    """What a trace is, in figures: for the table's title."""
    return {
        "requests": len(requests),
        "hours": max(requests[-1].arrival_s, 1.0) / 3600,
        "prompt_tokens": sum(one.prompt_tokens for one in requests) / len(requests),
        "prefix_ratio": sum(one.prefix_tokens for one in requests) / sum(one.prompt_tokens for one in requests),
        "output_tokens": sum(one.output_tokens for one in requests) / len(requests),
    }
