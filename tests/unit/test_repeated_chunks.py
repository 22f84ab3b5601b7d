"""What is around the text of a chunk, and its number."""

from __future__ import annotations

from serve_app.ingress.repeated_chunks import Around, around


def test_only_what_is_certain_is_around_a_text() -> None:
    known = around(b'{"a":{"text":"x"},"logprobs":null}', "x")
    assert known == (Around(b'{"a":{"text":', b'},"logprobs":null}'), 0)
    assert around(b'{"model":"x","text":"x"}', "x") is None
    assert around(b'{"text":"y"}', "x") is None
    assert around(b'{"text":""}', "") is None
    assert around(b'{"text":"x","usage":{"n":1}}', "x") is None
    assert around(b'{"text":"x","token_ids":[1]}', "x") is None
    assert around(b'{"text":"x","logprobs":[{"token":"x"}]}', "x") is None


def test_a_number_behind_the_text_is_counted() -> None:
    known = around(b'{"delta":"x","sequence_number":19,"type":"t"}', "x")
    assert known is not None
    assert known == (Around(b'{"delta":', b',"sequence_number":', b',"type":"t"}'), 19)
    assert known[0].chunk('"1"', 20) == b'{"delta":"\\"1\\"","sequence_number":20,"type":"t"}'


def test_a_number_elsewhere_is_not_certain() -> None:
    assert around(b'{"sequence_number":1,"text":"x"}', "x") is None
    assert around(b'{"text":"x","sequence_number":1,"sequence_number":2}', "x") is None
