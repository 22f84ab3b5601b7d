"""What decodes an answer needs the end of the prompt only."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from serve_app.config.profile import ROOT
from serve_app.vllm_patches.answer_stops import LAST_TOKENS, decoder_behind

TOKENIZER = Tokenizer.from_file(str(ROOT / "models" / "step-tiny" / "tokenizer.json"))
token = st.integers(0, TOKENIZER.get_vocab_size() - 1) | st.integers(0, 255)
"""Any, and the single bytes, of which several make a character."""


@given(st.booleans(), st.lists(token, max_size=2 * LAST_TOKENS), st.lists(token, max_size=12))
def test_an_answer_is_decoded_as_behind_the_whole_prompt(
    skip: bool,
    prompt: list[int],
    answer: list[int],
) -> None:
    assume(not TOKENIZER.decode(prompt).endswith("\N{REPLACEMENT CHARACTER}"))  # tokenizers then repeats the prompt
    whole, end = DecodeStream(ids=prompt, skip_special_tokens=skip), decoder_behind(prompt, skip_special_tokens=skip)

    def step(stream: DecodeStream, token_id: int) -> str | None:
        try:
            return stream.step(TOKENIZER, token_id)
        except Exception as error:  # noqa: BLE001  # what tokenizers raises for bytes that are no text
            return str(error)[:20]

    for token_id in answer:
        assert step(end, token_id) == step(whole, token_id)
