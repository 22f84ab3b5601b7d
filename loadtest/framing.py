"""From timed socket reads to timed events, after the stream has ended.

Two layers come off: HTTP's chunks, then server-sent events. An event is stamped with the read that brought the last
byte of its data, not the blank line after it. That is when vLLM's client sees it too (it tries JSON before the blank
line has come), so both give the same figures on the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.wire import Body, Exchange


class BadFraming(ValueError):
    """The bytes are not a chunked body."""


@dataclass(slots=True)
class Event:
    """One server-sent event: its data and the read that completed it."""

    data: bytes
    read: int
    name: bytes = b""


def unchunk(reads: list[bytes]) -> tuple[list[bytes], bool]:
    """The payload of each read of a chunked body, and whether its last chunk came.

    As many payloads as reads, so that times still match.
    """
    out: list[bytes] = []
    rest = b""  # an unfinished chunk header
    left = 0  # payload still missing of the open chunk
    closing = 0  # bytes of the CRLF after a payload still to be skipped
    ended = False
    for read in reads:
        if not rest and not left and not closing:
            # The common case by far: one read is one whole chunk.
            cut = read.find(b"\r\n", 0, 20)
            if cut > 0:
                size = _size(read[:cut])
                if len(read) == cut + 4 + size and size:
                    out.append(read[cut + 2 : -2])
                    continue
        data, rest, payload = rest + read, b"", []
        at = 0
        while at < len(data):
            if left:
                piece = data[at : at + left]
                payload.append(piece)
                at += len(piece)
                left -= len(piece)
                closing = 0 if left else 2
            elif closing:
                step = min(closing, len(data) - at)
                closing -= step
                at += step
            else:
                cut = data.find(b"\r\n", at)
                if cut < 0:
                    rest = data[at:]
                    break
                left = _size(data[at:cut])
                at = cut + 2
                if left == 0:
                    ended = True
                    break
        out.append(b"".join(payload))
    return out, ended


def _size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError as bad:
        raise BadFraming(f"not a chunk size: {line[:40]!r}") from bad


def payload_reads(exchange: Exchange) -> list[bytes]:
    """The body's bytes per read. A stream that was cut gives what came."""
    if exchange.body is not Body.CHUNKED:
        return exchange.reads
    payloads, ended = unchunk(exchange.reads)
    if not ended and not exchange.failure:
        raise BadFraming("the last chunk is missing")
    return payloads


def events(payloads: list[bytes]) -> Iterator[Event]:
    """Split a body into events. Comments are skipped; a last event without its blank line is given too."""
    if any(b"\r" in piece for piece in payloads):
        payloads = _plain_line_ends(payloads)
    ends: list[int] = []
    total = 0
    for piece in payloads:
        total += len(piece)
        ends.append(total)
    at = read = 0
    for block in b"".join(payloads).split(b"\n\n"):
        end = at + len(block)
        at = end + 2
        if block.startswith(b"data: ") and b"\n" not in block:
            name, data = b"", block[6:]
        else:
            name, data = _fields(block)
        if data:
            while ends[read] < end:
                read += 1
            yield Event(data, read, name)


def _plain_line_ends(payloads: list[bytes]) -> list[bytes]:
    """CRLF and CR become LF; a CR at the end of a read waits for what follows it."""
    out: list[bytes] = []
    carry = b""
    for piece in payloads:
        piece = carry + piece
        carry = b"\r" if piece.endswith(b"\r") else b""
        out.append(piece[: len(piece) - len(carry)].replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    return out


def _fields(block: bytes) -> tuple[bytes, bytes]:
    """The event's name and data by the SSE rules: several data lines join with a newline."""
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    return name, b"\n".join(data)
