"""A short cut through a stream's many alike events, exact by construction.

The chunks of one answer differ only in their text. Once one has been decoded in full, its bytes before and after the
text are known. A read that is those bytes around a string without quote and backslash can say nothing else, so it need
not be decoded again. Whatever differs in one byte takes the long way: a finish reason, usage, an error, another
channel, a read that holds half an event or two.
"""

from __future__ import annotations


class Lane:
    """What one event of a channel looks like around its text."""

    __slots__ = ("_before", "_chunked", "_tail", "visible")

    def __init__(self, data: bytes, key: bytes, text: str, *, visible: bool, chunked: bool) -> None:
        """Learn from an event's data, given the field that held its text; see `known`."""
        encoded = text.encode()
        at = data.find(key)
        end = at + len(key) + len(encoded)
        sure = (
            at >= 0 and data[at + len(key) : end + 1] == encoded + b'"' and b"\\" not in encoded and b'"' not in encoded
        )
        self.visible = visible
        self._chunked = chunked
        self._before = b"data: " + data[: at + len(key)] if sure else b""
        self._tail = data[end:] + (b"\n\n\r\n" if chunked else b"\n\n")

    @property
    def known(self) -> bool:
        """Whether the event was plain enough to learn from."""
        return bool(self._before)

    def text_of(self, read: bytes) -> bytes | None:
        """The text of a read that is one whole event of this lane, None for any other read."""
        if not read.endswith(self._tail):
            return None
        at = 0
        if self._chunked:
            at = read.find(b"\r\n", 0, 12) + 2
        before = self._before
        if not read.startswith(before, at):
            return None
        text = read[at + len(before) : -len(self._tail)]
        if b'"' in text or b"\\" in text or len(read) < at + len(before) + len(self._tail):
            return None
        if self._chunked and not _is_size(read[: at - 2], len(read) - at - 2):
            return None
        return text


def _is_size(line: bytes, size: int) -> bool:
    return line.lower() == b"%x" % size
