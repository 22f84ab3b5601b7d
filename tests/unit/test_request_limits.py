"""What a request lists is bounded before anything works through it."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.ingress.requests.preparation import (
    MAX_BAD_WORD_TOKENS,
    MAX_PROMPT_LOGPROBS,
    check_counts,
    check_token_counts,
)
from serve_app.protocol.errors import RequestRefused

FITS: list[dict[str, Any]] = [
    {},
    {"logit_bias": {str(number): 1 for number in range(1024)}},
    {"allowed_token_ids": list(range(1024))},
    {"stop_token_ids": list(range(120))},
    {"stop": "s" * 1000},
    {"stop": ["s" * 1000] * 4},
    {"stop_sequences": ["s" * 1000]},
    {"bad_words": ["b" * 1000] * 128},
    {"repetition_detection": {"max_pattern_size": 1024}},
    {"stop": None, "logit_bias": None, "bad_words": 5, "stop_token_ids": "x", "repetition_detection": []},
    {"repetition_detection": {"max_pattern_size": "many"}},
]

TOO_MUCH: list[tuple[dict[str, Any], str]] = [
    ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias"),
    ({"allowed_token_ids": list(range(1025))}, "allowed_token_ids"),
    ({"stop_token_ids": list(range(121))}, "stop_token_ids"),
    ({"bad_words": ["b"] * 129}, "bad_words"),
    ({"bad_words": ["b" * 1001]}, "bad_words"),
    ({"stop": "s" * 1001}, "stop"),
    ({"stop": ["a", "s" * 1001]}, "stop"),
    ({"stop_sequences": ["s" * 1001]}, "stop_sequences"),
    ({"repetition_detection": {"max_pattern_size": 10**9}}, "repetition_detection.max_pattern_size"),
]


@pytest.mark.parametrize("request_", FITS)
def test_what_fits_or_is_for_others_to_judge_is_taken(request_: dict[str, Any]) -> None:
    check_counts(request_)


@pytest.mark.parametrize(("request_", "field"), TOO_MUCH)
def test_too_much_is_refused_by_its_field(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        check_counts(request_)
    assert refused.value.param == field
    assert f"`{field}`" in refused.value.message
    assert "at most" in refused.value.message


def test_what_only_tokens_can_tell_is_refused_too() -> None:
    check_token_counts(MAX_BAD_WORD_TOKENS, MAX_PROMPT_LOGPROBS)
    with pytest.raises(RequestRefused, match="`bad_words` have 1025 tokens"):
        check_token_counts(MAX_BAD_WORD_TOKENS + 1, 0)
    with pytest.raises(RequestRefused, match="Ask for fewer `prompt_logprobs`"):
        check_token_counts(0, MAX_PROMPT_LOGPROBS + 1)
