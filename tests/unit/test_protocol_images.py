"""Images that a replica keeps, and what an ingress believes that it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocol.errors import ImagesMissing
from serve_app.protocol.images import ImageStore, SentImages
from serve_app.protocol.messages import (
    WIRE_VERSION,
    AttemptRequest,
    RequestSpec,
    decode_request,
    encode_request,
    encode_tokens,
)

SIZE = 100
NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4)


def content(name: str) -> list[bytearray]:
    return [bytearray(name.encode() * (SIZE // 2)), bytearray(SIZE // 2)]


def attempt(names: Sequence[str], sent: Sequence[str]) -> AttemptRequest:
    spec = RequestSpec("r", encode_tokens([1]), 8, 0, False, [], 0, [b""], images=list(names))
    request = AttemptRequest(WIRE_VERSION, "a", "ingress", spec, [], images={name: content(name) for name in sent})
    return decode_request(encode_request(request))


def test_an_image_is_sent_once() -> None:
    store = ImageStore(10 * SIZE)
    assert store.complete(attempt("ab", "ab")).images == {"a": content("a"), "b": content("b")}
    assert store.complete(attempt("ba", "")).images == {"b": content("b"), "a": content("a")}
    assert store.size_bytes == 2 * SIZE


def test_a_request_without_images_is_left_as_it_is() -> None:
    request = attempt("", "")
    assert ImageStore(0).complete(request) is request


def test_what_is_missing_is_said_and_what_came_is_kept() -> None:
    store = ImageStore(10 * SIZE)
    with pytest.raises(ImagesMissing, match="1 of 2"):
        store.complete(attempt("ab", "b"))
    assert store.complete(attempt("ab", "a")).images == {"a": content("a"), "b": content("b")}


def test_the_image_used_longest_ago_goes_first() -> None:
    store = ImageStore(2 * SIZE)
    store.complete(attempt("ab", "ab"))
    store.complete(attempt("a", ""))
    store.complete(attempt("c", "c"))
    assert store.complete(attempt("ac", "")).images.keys() == {"a", "c"}
    with pytest.raises(ImagesMissing):
        store.complete(attempt("b", ""))


def test_a_request_with_more_than_the_store_holds_gets_them_all() -> None:
    store = ImageStore(SIZE)
    assert store.complete(attempt("abc", "abc")).images.keys() == {"a", "b", "c"}
    assert store.size_bytes == SIZE
    assert ImageStore(SIZE - 1).complete(attempt("a", "a")).images == {"a": content("a")}


@given(st.lists(st.tuples(NAMES, st.integers(0, 1)), max_size=40), st.integers(0, 5 * SIZE))
def test_two_ingresses_get_every_request_through(requests: list[tuple[list[str], int]], max_bytes: int) -> None:
    """However small the store: the second try at the latest, with the content that belongs to each name."""
    store, ingresses = ImageStore(max_bytes), (SentImages(max_bytes), SentImages(max_bytes))
    for names, ingress in requests:
        sent = ingresses[ingress]
        images = {name: lambda name=name: content(name) for name in names}
        try:
            found = store.complete(attempt(names, list(sent.to_send(images))))
        except ImagesMissing:
            sent.forget(images)
            found = store.complete(attempt(names, list(sent.to_send(images))))
        assert found.images == {name: content(name) for name in names}
        assert store.size_bytes == sum(len(b) for one, _ in store._images._entries.values() for b in one) <= max_bytes


def test_with_one_ingress_nothing_is_sent_twice_and_nothing_missed() -> None:
    """The ingress lets go of the same images as the store."""
    store, sent, count = ImageStore(3 * SIZE), SentImages(3 * SIZE), 0
    for names in ("ab", "bc", "ca", "d", "ca", "b", "db", "ca"):
        going = sent.to_send({name: lambda name=name: content(name) for name in names})
        store.complete(attempt(names, list(going)))
        count += len(going)
    assert count == 7


def test_encoded_images_may_be_views() -> None:
    """The ingress sends vLLM's tensors without a copy."""
    view = msgspec.structs.replace(attempt("a", ""), images={"a": [memoryview(b"xy")]})
    assert decode_request(encode_request(view)).images == {"a": [bytearray(b"xy")]}
