"""A table of texts decodes as `tokenizers` does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

from serve_app.config.profile import ROOT
from serve_app.vllm_patches.token_texts import TokenDecoder, TokenTexts

TOKENIZER = Tokenizer.from_file(str(ROOT / "models" / "step-tiny" / "tokenizer.json"))
TEXTS = TokenTexts(TOKENIZER)
token = st.integers(0, TOKENIZER.get_vocab_size() - 1) | st.integers(0, 255)
"""Any, and the single bytes, of which several make a character."""
text = st.text(max_size=12).map(lambda one: TOKENIZER.encode(one, add_special_tokens=False).ids)


def step(decoder: DecodeStream | TokenDecoder, token_id: int) -> str | None:
    try:
        return decoder.step(TOKENIZER, token_id)
    except Exception as error:  # noqa: BLE001  # what tokenizers raises for bytes that are no text
        return str(error)[:20]


@given(st.booleans(), st.lists(token, max_size=8), st.lists(text | st.lists(token, max_size=4), max_size=6))
def test_tokens_are_decoded_as_by_tokenizers(skip: bool, prompt: list[int], answer: list[list[int]]) -> None:
    theirs = DecodeStream(ids=prompt, skip_special_tokens=skip)
    ours = TokenDecoder(DecodeStream(ids=prompt, skip_special_tokens=skip), TEXTS)
    for token_id in (one for part in answer for one in part):
        assert step(ours, token_id) == step(theirs, token_id)


def test_every_token_has_the_text_that_tokenizers_gives_it() -> None:
    known = 0
    for token_id in range(TOKENIZER.get_vocab_size()):
        if said := TEXTS.of(token_id):
            known += 1
            assert said == TOKENIZER.decode([token_id], skip_special_tokens=False)
    assert known > TOKENIZER.get_vocab_size() / 2


def test_another_decoder_is_asked_for_every_token() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]  # its stub knows the getter's type only
    assert not TokenTexts(tokenizer).of(0)
