"""What broke off is kept by resume_key, for a while, and not without end."""

from __future__ import annotations

from serve_app.engine.partial_outputs import PartialOutputs
from serve_app.protocol.messages import encode_tokens
from serve_app.router.request_context import RequestContext


def test_it_is_there_until_its_time_is_over() -> None:
    leftovers = PartialOutputs(keep_s=60)
    leftovers.keep("a", [1, 2, 3], now_s=0.0)
    assert leftovers.find("a", now_s=59.0) == [1, 2, 3]
    assert leftovers.find("a", now_s=59.0) == [1, 2, 3]  # who takes it up may break off too
    assert leftovers.find("b", now_s=59.0) == []
    assert leftovers.find("a", now_s=60.0) == []


def test_a_later_break_takes_the_place_of_an_earlier_one() -> None:
    leftovers = PartialOutputs(max_tokens=4)
    leftovers.keep("a", [1, 2], now_s=0.0)
    leftovers.keep("a", [1, 2, 3, 4], now_s=1.0)
    assert leftovers.find("a", now_s=2.0) == [1, 2, 3, 4]


def test_the_oldest_makes_room() -> None:
    leftovers = PartialOutputs(max_tokens=4)
    leftovers.keep("old", [1, 2], now_s=0.0)
    leftovers.keep("new", [3, 4, 5], now_s=1.0)
    assert leftovers.find("old", now_s=2.0) == []
    assert leftovers.find("new", now_s=2.0) == [3, 4, 5]
    leftovers.keep("too long", [1] * 5, now_s=3.0)
    assert leftovers.find("too long", now_s=3.0) == []


def test_a_claim_is_of_the_same_key_the_same_body_and_the_same_prompt() -> None:
    def resume_key(
        request_id: str = "r", key: str | None = "alice", body: bytes = b"1", prompt: tuple[int, ...] = (1, 2)
    ) -> str:
        return RequestContext(request_id, key_name=key, body_digest=body).resume_keys(encode_tokens(prompt))[0]

    assert resume_key() == resume_key()
    others = {
        resume_key("s"),
        resume_key(key="bob"),
        resume_key(key=None),
        resume_key(body=b"2"),
        resume_key(prompt=(1, 3)),
    }
    assert len(others) == 5
    assert resume_key() not in others
    assert resume_key(body=b"") == ""


def test_a_request_continues_what_the_broken_one_kept() -> None:
    broken = RequestContext("broken", key_name="alice", body_digest=b"1")
    again = RequestContext("again", resume_request_id="broken", key_name="alice", body_digest=b"1")
    kept, _ = broken.resume_keys(encode_tokens([1, 2]))
    own, continues = again.resume_keys(encode_tokens([1, 2]))
    assert continues == kept != own
    assert broken.resume_keys(encode_tokens([1, 2]))[1] == ""
