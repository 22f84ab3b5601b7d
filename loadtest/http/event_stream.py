"""Decode socket reads into server-sent events, after the stream has ended.

Two layers are decoded: HTTP chunks, then server-sent events. An event belongs to the read that brought the last byte of
its data, not to the read of the blank line after it. vLLM's client also sees it then, because it tries to parse JSON
before the blank line has arrived, so both clients compute the same figures from the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.http.connection import Body, Exchange


class BadFraming(ValueError):
    """The bytes are not a complete chunked body."""


@dataclass(slots=True)
class Event:
    """One server-sent event."""

    data: bytes
    read_index: int
    """Which socket read completed the data."""
    name: bytes = b""


class ChunkDecoder:
    """Decodes HTTP's chunked transfer coding, read by read."""

    def __init__(self) -> None:
        self._partial_header = b""
        self._missing_payload = 0  # bytes of the current chunk's payload
        self._missing_crlf = 0  # bytes of the CRLF after a payload
        self.ended = False

    @property
    def between_chunks(self) -> bool:
        """Whether the next read starts with a chunk header."""
        return not (self._partial_header or self._missing_payload or self._missing_crlf)

    def feed(self, read: bytes) -> bytes:
        """The payload in one read. Raises BadFraming."""
        data, self._partial_header = self._partial_header + read, b""
        payload: list[bytes] = []
        at = 0
        while at < len(data) and not self.ended:
            if self._missing_payload:
                piece = data[at : at + self._missing_payload]
                payload.append(piece)
                at += len(piece)
                self._missing_payload -= len(piece)
                self._missing_crlf = 0 if self._missing_payload else 2
            elif self._missing_crlf:
                step = min(self._missing_crlf, len(data) - at)
                self._missing_crlf -= step
                at += step
            else:
                end = data.find(b"\r\n", at)
                if end < 0:
                    self._partial_header = data[at:]
                    break
                self._missing_payload = chunk_size(data[at:end])
                at = end + 2
                self.ended = self._missing_payload == 0
        return b"".join(payload)


def chunk_size(line: bytes) -> int:
    """The size in a chunk header, without its extensions. Raises BadFraming."""
    digits = line.partition(b";")[0].strip()
    # `int` alone would take signs and underscores, too.
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise BadFraming(f"not a chunk size: {line[:40]!r}")
    return int(digits, 16)


def payload_of(exchange: Exchange) -> bytes:
    """The body without chunk headers; of an incomplete response, what arrived. Raises BadFraming."""
    if exchange.body is not Body.CHUNKED:
        return b"".join(exchange.reads)
    decoder = ChunkDecoder()
    return b"".join(map(decoder.feed, exchange.reads))


class EventFeed:
    """Splits a body into events, read by read. Comments are skipped."""

    def __init__(self, *, chunked: bool) -> None:
        self.chunked = chunked
        self._chunk_decoder = ChunkDecoder()
        self._text = b""  # of an event whose blank line has not arrived
        self._read_ends: list[tuple[int, int]] = []  # (length of _text after a read, index of that read)
        self._carry = b""  # a CR that may be the first half of a CRLF

    @property
    def between_events(self) -> bool:
        """Whether the next read starts with a new event (and, in a chunked body, with a chunk header)."""
        return not self._text and not self._carry and (not self.chunked or self._chunk_decoder.between_chunks)

    def feed(self, read: bytes, read_index: int) -> list[Event]:
        """The events that a read completes. Raises BadFraming."""
        if self.chunked:
            read = self._chunk_decoder.feed(read)
        if self._carry or b"\r" in read:
            read = self._normalize_line_ends(read)
        if not read:
            return []
        text = self._text + read
        self._read_ends.append((len(text), read_index))
        *blocks, rest = text.split(b"\n\n")
        events: list[Event] = []
        at = 0
        for block in blocks:
            self._append_event(block, at + len(block), events)
            at += len(block) + 2
        # A rest of line ends only is the surplus after an event's blank line.
        self._text = rest if rest.strip(b"\n") else b""
        self._read_ends = [(end - at, index) for end, index in self._read_ends if end > at] if self._text else []
        return events

    def finish(self) -> list[Event]:
        """A last event that lacks its blank line. Raises BadFraming if the last chunk is missing."""
        if self.chunked and not self._chunk_decoder.ended:
            raise BadFraming("the last chunk is missing")
        events: list[Event] = []
        self._append_event(self._text, len(self._text), events)
        return events

    def _append_event(self, block: bytes, end: int, events: list[Event]) -> None:
        """Add the block's event, if it has data; `end` is the block's end within the text."""
        if block.startswith(b"data: ") and b"\n" not in block:
            name, data = b"", block[6:]
        else:
            name, data = _fields(block)
            end -= len(block) - len(block.rstrip(b"\n"))
        if data:
            events.append(Event(data, next(index for length, index in self._read_ends if length >= end), name))

    def _normalize_line_ends(self, read: bytes) -> bytes:
        """Replace CRLF and CR by LF; a CR at the end of a read is kept back, since LF may follow."""
        read = self._carry + read
        self._carry = b"\r" if read.endswith(b"\r") else b""
        return read[: len(read) - len(self._carry)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _fields(block: bytes) -> tuple[bytes, bytes]:
    """The event's name and data by the SSE specification: data lines are joined with a newline."""
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    return name, b"\n".join(data)
