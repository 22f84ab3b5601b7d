"""From timed socket reads to timed events, after the stream has ended.

Two layers come off: HTTP's chunks, then server-sent events. An event is stamped with the read that brought the last
byte of its data, not the blank line after it. That is when vLLM's client sees it too (it tries JSON before the blank
line has come), so both give the same figures on the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.http.connection import Body, Exchange


class BadFraming(ValueError):
    """The bytes are not a complete chunked body."""


@dataclass(slots=True)
class Event:
    """One server-sent event: its data and the number of the read that completed it."""

    data: bytes
    read: int
    name: bytes = b""


class Unchunk:
    """Takes HTTP's chunks off, read by read."""

    def __init__(self) -> None:
        self._rest = b""  # an unfinished chunk header
        self._left = 0  # payload still missing of the open chunk
        self._closing = 0  # bytes of the CRLF after a payload still to come
        self.ended = False

    @property
    def clean(self) -> bool:
        """Between two chunks."""
        return not (self._rest or self._left or self._closing)

    def feed(self, read: bytes) -> bytes:
        """The payload in one read."""
        data, self._rest = self._rest + read, b""
        payload: list[bytes] = []
        at = 0
        while at < len(data) and not self.ended:
            if self._left:
                piece = data[at : at + self._left]
                payload.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._closing = 0 if self._left else 2
            elif self._closing:
                step = min(self._closing, len(data) - at)
                self._closing -= step
                at += step
            else:
                cut = data.find(b"\r\n", at)
                if cut < 0:
                    self._rest = data[at:]
                    break
                self._left = chunk_size(data[at:cut])
                at = cut + 2
                self.ended = self._left == 0
        return b"".join(payload)


def chunk_size(line: bytes) -> int:
    """A chunk header's number."""
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError as bad:
        raise BadFraming(f"not a chunk size: {line[:40]!r}") from bad


def payload_of(exchange: Exchange) -> bytes:
    """The whole body. A stream that was cut gives what came."""
    if exchange.body is not Body.CHUNKED:
        return b"".join(exchange.reads)
    layer = Unchunk()
    return b"".join(map(layer.feed, exchange.reads))


class EventFeed:
    """Splits a body into events, read by read. Comments are skipped."""

    def __init__(self, *, chunked: bool) -> None:
        self.chunked = chunked
        self._unchunk = Unchunk()
        self._text = b""  # of an event whose blank line has not come
        self._origins: list[tuple[int, int]] = []  # (length of _text after a read, number of that read)
        self._carry = b""  # a CR that may be half a line end

    @property
    def clean(self) -> bool:
        """Between two events and between two chunks: the next read starts afresh."""
        return not self._text and not self._carry and (not self.chunked or self._unchunk.clean)

    def feed(self, read: bytes, number: int) -> list[Event]:
        """The events that a read completes."""
        if self.chunked:
            read = self._unchunk.feed(read)
        if self._carry or b"\r" in read:
            read = self._plain_line_ends(read)
        if not read:
            return []
        text = self._text + read
        self._origins.append((len(text), number))
        *blocks, rest = text.split(b"\n\n")
        out: list[Event] = []
        at = 0
        for block in blocks:
            self._add(block, at + len(block), out)
            at += len(block) + 2
        # Only a line end is left of an event whose data has been given: it belongs to nothing.
        self._text = rest if rest.strip(b"\n") else b""
        self._origins = [(end - at, origin) for end, origin in self._origins if end > at] if self._text else []
        return out

    def finish(self) -> list[Event]:
        """A last event that lacks its blank line. Raises BadFraming if the last chunk is missing."""
        if self.chunked and not self._unchunk.ended:
            raise BadFraming("the last chunk is missing")
        out: list[Event] = []
        self._add(self._text, len(self._text), out)
        return out

    def _add(self, block: bytes, end: int, out: list[Event]) -> None:
        if block.startswith(b"data: ") and b"\n" not in block:
            name, data = b"", block[6:]
        else:
            name, data = _fields(block)
            end -= len(block) - len(block.rstrip(b"\n"))
        if data:
            out.append(Event(data, next(number for length, number in self._origins if length >= end), name))

    def _plain_line_ends(self, read: bytes) -> bytes:
        """CRLF and CR become LF; a CR at the end of a read waits for what follows it."""
        read = self._carry + read
        self._carry = b"\r" if read.endswith(b"\r") else b""
        return read[: len(read) - len(self._carry)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")


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
