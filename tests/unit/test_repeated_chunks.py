"""What is around the text of a chunk."""

from __future__ import annotations

from serve_app.ingress.repeated_chunks import around


def test_only_what_is_certain_is_around_a_text() -> None:
    known = around(b'{"a":{"text":"x"},"logprobs":null}', "x")
    assert known is not None
    assert (known.before, known.after) == (b'{"a":{"text":', b'},"logprobs":null}')
    assert around(b'{"model":"x","text":"x"}', "x") is None
    assert around(b'{"text":"y"}', "x") is None
    assert around(b'{"text":""}', "") is None
    assert around(b'{"text":"x","usage":{"n":1}}', "x") is None
    assert around(b'{"text":"x","token_ids":[1]}', "x") is None
    assert around(b'{"text":"x","sequence_number":1}', "x") is None
