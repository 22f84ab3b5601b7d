"""However a stream is cut into reads, it gives the same events, stamped with the read that completed them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.api.event_parser import ParsedResponse, parse_openai
from loadtest.api.fast_path import FastPath
from loadtest.http.event_stream import BadFraming, ChunkDecoder, EventFeed
from loadtest.mock.answers import WRITERS, MockConfig, MockRequest, chunk

STREAM = b": ping\n\ndata: one\n\nevent: x\ndata: two\n\ndata:three\ndata: more\n\n\ndata: last\n\n"


def cut(body: bytes, places: set[int]) -> list[bytes]:
    edges = [0, *sorted(place for place in places if place < len(body)), len(body)]
    return [body[a:b] for a, b in pairwise(edges) if a < b]


def events_of(reads: list[bytes], *, chunked: bool = False) -> list[tuple[bytes, int]]:
    feed = EventFeed(chunked=chunked)
    found = [event for number, read in enumerate(reads) for event in feed.feed(read, number)]
    return [(event.data, event.read_index) for event in [*found, *feed.finish()]]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, len(STREAM) - 1)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_are_the_same_however_the_body_is_cut_and_lines_end(places: set[int], line_end: bytes) -> None:
    body = STREAM.replace(b"\n", line_end)
    reads = cut(body, places)
    found = events_of(reads)
    assert [data for data, _ in found] == [b"one", b"two", b"three\nmore", b"last"]
    ends = [sum(len(read) for read in reads[: number + 1]) for number in range(len(reads))]
    for data, read in found:
        last_byte = body.index(data.replace(b"\n", line_end + b"data: ")) + len(
            data.replace(b"\n", line_end + b"data: ")
        )
        assert ends[read] >= last_byte
        assert read == 0 or ends[read - 1] < last_byte


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, len(STREAM) - 1)), st.sets(st.integers(1, 200)))
def test_chunks_come_off_wherever_they_and_the_reads_are_cut(chunks: set[int], reads: set[int]) -> None:
    body = b"".join(chunk(piece) for piece in cut(STREAM, chunks)) + b"0\r\n\r\n"
    found = events_of(cut(body, reads), chunked=True)
    assert [data for data, _ in found] == [b"one", b"two", b"three\nmore", b"last"]


def test_a_missing_last_chunk_is_an_error() -> None:
    with pytest.raises(BadFraming, match="last chunk"):
        events_of([chunk(STREAM)], chunked=True)


@pytest.mark.parametrize("size", [b"zz", b"", b"-5", b"+5", b"0x5", b"1_0", b";x"])
def test_a_chunk_size_that_is_no_hexadecimal_number_is_an_error(size: bytes) -> None:
    with pytest.raises(BadFraming, match="not a chunk size"):
        ChunkDecoder().feed(size + b"\r\nhello\r\n")


def test_chunk_extensions_and_upper_case_sizes_are_accepted() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(b"A;name=value\r\n0123456789\r\n1 \r\n!\r\n0\r\n\r\nrest") == b"0123456789!"
    assert decoder.ended


def test_events_are_named_and_comments_are_skipped() -> None:
    feed = EventFeed(chunked=False)
    events = feed.feed(b": ping\n\nevent: a\ndata: 1\n\nid: 3\nretry: 5\n\ndata\n\ndata:2\n\n", 0)
    assert [(event.name, event.data) for event in events] == [(b"a", b"1"), (b"", b"2")]
    assert feed.between_events


def read_all(reads: list[bytes]) -> ParsedResponse:
    parsed = ParsedResponse()
    for _ in parse_openai(EventFeed(chunked=True), reads, parsed):
        pass
    return parsed


TEXTS = st.lists(st.text(max_size=8), min_size=3, max_size=20)


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.sets(st.integers(1, 4000), max_size=6))
def test_the_fast_path_gives_the_same_as_decoding(texts: list[str], places: set[int]) -> None:
    import msgspec

    pieces = []
    for number, text in enumerate(texts):
        field = "reasoning" if number % 7 == 3 else "content"
        event = {"id": "x", "choices": [{"index": 0, "delta": {field: text}, "finish_reason": None}]}
        pieces.append(chunk(b"data: " + msgspec.json.encode(event) + b"\n\n"))
    pieces.append(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    whole = read_all(pieces)  # one event per read: the fast path is taken where possible
    torn = read_all(cut(b"".join(pieces), places))  # not where a read has a part of an event
    bytewise = read_all([bytes([byte]) for byte in b"".join(pieces)])  # never
    expected = "".join(text for number, text in enumerate(texts) if number % 7 != 3)
    for parsed in (whole, torn, bytewise):
        assert b"".join(parsed.text).decode() == expected
        assert parsed.has_token == [bool(text) for text in texts]
        assert parsed.ended


@pytest.mark.parametrize("length", [*range(1, 40), *range(190, 260), *range(3900, 4100), 70_000])
def test_the_fast_path_computes_the_chunks_size(length: int) -> None:
    fast_path = FastPath(b'{"text":"a"}', b'"text":"', "a", visible=True, chunked=True)
    whole = chunk(b'data: {"text":"%s"}\n\n' % (b"x" * length))
    assert fast_path.texts_of([whole]) == [b"x" * length]
    size, _, rest = whole.partition(b"\r\n")
    assert fast_path.texts_of([b"0" + size + b"\r\n" + rest]) in ([b"x" * length], []), (
        "a leading zero is the same number"
    )
    for wrong in (int(size, 16) - 1, int(size, 16) + 1, int(size, 16) // 16):
        assert fast_path.texts_of([b"%x\r\n" % max(0, wrong) + rest]) == []


def test_the_fast_path_matches_an_event_that_shares_its_read() -> None:
    fast_path = FastPath(b'{"text":"a","n":1}', b'"text":"', "a", visible=True, chunked=True)
    assert fast_path.text_of(b'{"text":" word","n":1}') == b" word"
    assert fast_path.text_of(b'{"text":"","n":1}') == b""
    for other in (
        b'{"text":"a\\n","n":1}',
        b'{"text":"a","b":"","n":1}',
        b'{"text":"a","n":2}',
        b'{"text":"',
        b"[DONE]",
    ):
        assert fast_path.text_of(other) is None
    unsure = FastPath(b'{"text":"\\u0061"}', b'"text":"', "a", visible=True, chunked=True)
    assert not unsure.usable


def test_the_fast_path_matches_only_similar_events() -> None:
    chunks = WRITERS["/v1/chat/completions"](MockConfig(), MockRequest(model="m", max_tokens=5))
    data = chunks[1].partition(b"data: ")[2].rstrip()
    fast_path = FastPath(data, b'"content":"', " word", visible=True, chunked=True)
    assert fast_path.usable
    assert fast_path.texts_of([*chunks[1:3], chunks[-1], chunks[2]]) == [b" word"] * 2, "up to the first that is not"
    quoted = chunks[2].replace(b" word", b' "ord')
    assert fast_path.texts_of([chunks[2], quoted, chunks[2]]) == [b" word"]
    assert fast_path.texts_of([chunks[-1]]) == [], "the last one has a finish reason"
    assert fast_path.texts_of([chunks[2][:-1]]) == []
    assert fast_path.texts_of([chunks[2] + chunks[2]]) == []
    assert fast_path.texts_of([b"fff" + chunks[2][2:]]) == [], "the chunk's size must be right"
    assert not FastPath(data, b'"text":"', " word", visible=True, chunked=True).usable
