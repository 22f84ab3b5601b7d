"""A prompt in pieces has the tokens that it has as a whole, and no piece is tokenised twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serve_app.config.profile import ROOT
from serve_app.vllm_patches import token_cache
from serve_app.vllm_patches.token_cache import SafeCuts, TokenCache, by_pieces

DEMO: Path = ROOT / "models" / "step-tiny" / "tokenizer.json"
DESCRIBED: dict[str, Any] = json.loads(DEMO.read_text(encoding="utf-8"))
TOKENIZER = Tokenizer.from_file(str(DEMO))

written = st.lists(
    st.sampled_from(
        [token["content"] for token in DESCRIBED["added_tokens"]]
        + [
            "<|im_",
            "start|>",
            "<|im_end",
            "|",
            ">",
            "<",
            "\n",
            " ",
            "  ",
            "what",
            " is",
            "2",
            "é",
            "\u0301",
            "日",
            "\t\n",
        ]
    )
    | st.text(max_size=5),
    max_size=12,
).map("".join)


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in TOKENIZER.encode_batch(list(texts), add_special_tokens=False)]


def plain(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


class Counting:
    """Encodes, and notes what."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        self.texts += texts
        return encode(texts)


CUTS = SafeCuts.of(DESCRIBED)
CACHE = TokenCache(CUTS, encode, limit_bytes=20_000)


def test_the_demos_turns_are_cut_at() -> None:
    assert {"<|im_start|>", "<|im_end|>", "<im_patch>"} <= set(CUTS.ids)
    assert "</parameter>" not in CUTS.ids  # there is a token that contains it
    assert "<tool_call>" not in CUTS.ids


@given(written)
def test_pieces_have_the_tokens_of_the_whole(text: str) -> None:
    assert CACHE.tokenize(text) == plain(text)
    assert CACHE.size_bytes <= 20_000


@given(written, st.integers(1, 8))
def test_a_text_that_is_cut_off_begins_with_the_same_tokens(text: str, longest: int) -> None:
    assert CACHE.tokenize(text, longest)[:longest] == plain(text)[:longest]


def test_only_what_is_new_is_tokenised() -> None:
    counting = Counting()
    cache = TokenCache(CUTS, counting)
    first = "<|im_start|>user\nwhat is two<|im_end|>"
    cache.tokenize(first)
    counting.texts.clear()
    cache.tokenize(first + "<|im_start|>assistant\ntwo")
    assert counting.texts == ["assistant\ntwo"]


def test_a_prompt_that_is_too_long_is_not_tokenised_to_its_end() -> None:
    counting = Counting()
    turns = ["<|im_start|>" + f"{number} " * 30_000 for number in range(20)]
    TokenCache(CUTS, counting).tokenize("".join(turns), longest=1000)
    assert 0 < sum(map(len, counting.texts)) <= 2 * token_cache.BATCH_CHARACTERS


def test_the_least_recently_used_go_first() -> None:
    counting = Counting()
    cache = TokenCache(CUTS, counting, limit_bytes=2 * token_cache.ENTRY_BYTES + 40)
    for text in ("one", "two", "one", "three", "one", "two"):
        cache.tokenize(text)
    assert counting.texts == ["one", "two", "three", "two"]


def described(**parts: Any) -> dict[str, Any]:
    tokens = [{"id": 1, "content": "<|a|>", "normalized": False}]
    return {"normalizer": None, "pre_tokenizer": None, "added_tokens": tokens} | parts


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Prepend", "prepend": "_"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Strip"}]}},
        {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True}]}},
    ],
    ids=str,
)
def test_a_tokenizer_that_looks_beyond_a_piece_is_given_none(parts: dict[str, Any]) -> None:
    assert not SafeCuts.of(described(**parts))
    assert SafeCuts.of(described())


@pytest.mark.parametrize(
    "others",
    [
        [{"id": 1, "content": "<|a|>", "normalized": False, "lstrip": True}],
        [{"id": 1, "content": "<|a|>", "normalized": False, "rstrip": True}],
        [{"id": 1, "content": "<|a|>", "normalized": False, "single_word": True}],
        [{"id": 1, "content": "<|a|>", "normalized": True}],
        [{"id": 1, "content": "<|a|>", "normalized": False}, {"id": 2, "content": "\n<|a|>", "normalized": False}],
        [{"id": 1, "content": "<|a|>", "normalized": False}, {"id": 2, "content": "|>\n", "normalized": False}],
        [{"id": 1, "content": "<|a|>", "normalized": False}, {"id": 2, "content": "x<|", "normalized": False}],
    ],
    ids=str,
)
def test_a_special_token_that_may_be_part_of_another_is_no_cut(others: list[dict[str, Any]]) -> None:
    assert "<|a|>" not in SafeCuts.of(described(added_tokens=others)).ids


class Renderer:
    """vLLM's renderer, as far as it tokenises."""

    wants_offsets = False

    def __init__(self, truncation_side: str = "right") -> None:
        self.tokenizer = FakeTokenizer(truncation_side)

    def get_tokenizer(self) -> FakeTokenizer:
        return self.tokenizer

    def _wants_offsets(self, _prompt: object, _params: object) -> bool:
        return self.wants_offsets

    def _build_tokens_prompt(self, token_ids: list[int], prompt: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_token_ids": token_ids, **prompt}


class FakeTokenizer:
    """A tokenizer of transformers."""

    backend_tokenizer = TOKENIZER

    def __init__(self, truncation_side: str) -> None:
        self.truncation_side = truncation_side

    def __call__(self, texts: list[str], **_options: bool) -> dict[str, Any]:
        return {"input_ids": encode(texts)}


class Params:
    """vLLM's parameters of tokenising."""

    def __init__(self, **options: Any) -> None:
        self._options = {"truncation": False, "max_length": None, "add_special_tokens": False} | options

    def get_encode_kwargs(self) -> dict[str, Any]:
        return self._options


TEXT = "<|im_start|>user\nwhat is two<|im_end|>"
tokenize_prompt = by_pieces(lambda *_arguments: "vLLM's", ModuleType("base"))


def test_vllms_prompt_is_made_of_the_pieces() -> None:
    prompt = {"prompt": TEXT}
    assert tokenize_prompt(Renderer(), prompt, Params()) == {"prompt_token_ids": plain(TEXT), **prompt}
    cut_off = tokenize_prompt(Renderer(), prompt, Params(truncation=True, max_length=3))
    assert cut_off["prompt_token_ids"] == plain(TEXT)[:3]
    # This tokenizer adds no tokens around a text.
    assert tokenize_prompt(Renderer(), prompt, Params(add_special_tokens=True)) != "vLLM's"


def test_what_cannot_be_made_of_pieces_is_vllms() -> None:
    prompt, offsets, other = {"prompt": TEXT}, Renderer(), Renderer()
    offsets.wants_offsets = True
    other.tokenizer = SimpleNamespace(truncation_side="right")  # type: ignore[assignment]  # not one of transformers
    assert tokenize_prompt(offsets, prompt, Params()) == "vLLM's"
    assert tokenize_prompt(other, prompt, Params()) == "vLLM's"
    assert tokenize_prompt(Renderer("left"), prompt, Params(truncation=True, max_length=3)) == "vLLM's"
    assert tokenize_prompt(Renderer(), prompt, Params(truncation=True, max_length=0)) == "vLLM's"
