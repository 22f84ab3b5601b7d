"""Messages of another wire version are noticed before anything of them is believed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocol.messages import (
    WIRE_VERSION,
    AttemptRequest,
    OtherWireVersion,
    ReplicaInfo,
    ReplicaLoad,
    RequestSpec,
    count_tokens,
    decode_info,
    decode_request,
    encode_info,
    encode_request,
    encode_tokens,
)

SPEC = RequestSpec("r", encode_tokens([1, 2]), 8, 0, False, [], 0, [b""], "key")


def test_messages_arrive_as_they_were_sent() -> None:
    attempt = AttemptRequest(WIRE_VERSION, "a", "ingress", SPEC, [3], admitted=True)
    info = ReplicaInfo(WIRE_VERSION, "replica", ReplicaLoad(1, 8, 0.5, draining=False), vllm_version="0.33.0")
    assert decode_request(encode_request(attempt)) == attempt
    assert decode_info(encode_info(info)) == info


def test_an_attempt_of_another_version_is_not_read() -> None:
    later = encode_request(AttemptRequest(WIRE_VERSION + 1, "a", "ingress", SPEC, []))
    with pytest.raises(OtherWireVersion, match=f"not {WIRE_VERSION + 1}"):
        decode_request(later)


@pytest.mark.parametrize("fields", [[WIRE_VERSION + 1, "a"], [WIRE_VERSION + 1, "a", {"another": "layout"}, 7.5]])
def test_an_attempt_of_another_layout_is_of_another_version(fields: list[object]) -> None:
    with pytest.raises(OtherWireVersion, match=f"not {WIRE_VERSION + 1}"):
        decode_request(msgspec.msgpack.encode(fields))


def test_of_an_info_of_another_version_only_that_and_the_name_are_read() -> None:
    info = decode_info(msgspec.msgpack.encode([WIRE_VERSION + 1, "replica", {"another": "layout"}]))
    assert (info.wire_version, info.replica_id, info.load.draining) == (WIRE_VERSION + 1, "replica", True)


def test_bytes_that_are_no_info_are_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_info(msgspec.msgpack.encode(["replica", [0, 0]]))


@given(st.lists(st.integers(0, 200_000)) | st.sampled_from([0, 15, 16, 65_535, 65_536]).map(range))
def test_tokens_are_counted_without_decoding_them(token_ids: Sequence[int]) -> None:
    tokens = encode_tokens(list(token_ids))
    assert count_tokens(tokens) == len(token_ids)
    spec = msgspec.structs.replace(SPEC, prompt=tokens)
    assert (spec.prompt_tokens, spec.prompt_token_ids) == (len(token_ids), list(token_ids))


def test_a_decoded_request_does_not_keep_its_message() -> None:
    """The message may have a hundred megabytes of images."""
    message = bytearray(encode_request(AttemptRequest(WIRE_VERSION, "a", "ingress", SPEC, [])))
    request = decode_request(memoryview(message))
    message.clear()  # fails while something refers to it
    assert request.spec.prompt_token_ids == [1, 2]
