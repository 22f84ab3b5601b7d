"""The tokenizer loses nothing and spells unknown words alike everywhere; our rendering is transformers' own."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from models.training import checkpoint, tokenizer
from models.training.encoding import Renderer, completion
from models.training.model.dimensions import Shape
from models.training.tasks import curriculum
from models.training.tasks.tool_catalogue import KNOWN

HOME = checkpoint.HOME


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer.from_file(str(HOME / "tokenizer.json"))


@pytest.mark.parametrize(
    "text", ["", "Hello, world!", "  two  blanks\n\ttab", "naïve 日本語 🙂", '{"a": [1, 2.5, null]}', "\x00\x7f"]
)
def test_text_survives_the_round_trip(shipped: Tokenizer, text: str) -> None:
    assert shipped.decode(shipped.encode(text).ids, skip_special_tokens=False) == text


def test_it_has_as_many_entries_as_the_model(shipped: Tokenizer) -> None:
    assert shipped.get_vocab_size() == Shape().vocab


def test_digits_stand_alone(shipped: Tokenizer) -> None:
    assert shipped.encode("1234").tokens == ["1", "2", "3", "4"]


@pytest.mark.parametrize("digit", range(10))
def test_a_point_before_a_digit_is_no_full_stop(shipped: Tokenizer, digit: int) -> None:
    assert shipped.encode(f"31.{digit}").tokens == ["3", "1", f".{digit}"]
    assert shipped.encode("31.").tokens == ["3", "1", "."]


@pytest.mark.parametrize("word", ["Quixbury", "zorvath", "Antananarivo"])
def test_an_unknown_word_is_spelt_the_same_after_a_blank(shipped: Tokenizer, word: str) -> None:
    bare = shipped.encode(word).ids
    assert shipped.encode(f"in {word}").ids[-len(bare) :] == bare
    assert shipped.encode(f'"{word}').ids[-len(bare) :] == bare


@pytest.mark.parametrize("before", ['"', "\n", "1. ", ": ", ", "])
def test_a_word_of_the_lessons_own_is_the_same_after_any_mark(shipped: Tokenizer, before: str) -> None:
    """What is quoted in a request is found again at the start of a value or of a list's item."""
    said = "the end"
    assert shipped.encode(before + said).tokens[-len(shipped.encode(said)) :] == shipped.encode(said).tokens


@pytest.mark.parametrize("topic", sorted({tool.topic for tool in KNOWN}))
def test_what_a_call_is_for_is_one_token(shipped: Tokenizer, topic: str) -> None:
    """One decision, which the tool's name then follows from."""
    assert len(shipped.encode(f"For {topic}").ids) == len(shipped.encode("For").ids) + 1


@pytest.mark.parametrize("marker", tokenizer.SPECIAL + tokenizer.ADDED)
def test_markers_and_phrases_are_one_token(shipped: Tokenizer, marker: str) -> None:
    assert len(shipped.encode(marker).ids) == 1


@pytest.mark.parametrize("phrase", tokenizer.PHRASES)
def test_the_template_still_writes_every_phrase(shipped: Tokenizer, phrase: str) -> None:
    """A phrase that nothing writes any more would be an entry for nothing, and its parts would be untrained."""
    renderer = Renderer(HOME / "chat_template.jinja")
    samples = [curriculum.draw("result", i, held_out=False) for i in range(40)]
    wanted = shipped.token_to_id(phrase)
    assert any(wanted in shipped.encode(renderer.prompt(sample)).ids for sample in samples)


def test_digits_and_marks_spell_no_word(shipped: Tokenizer) -> None:
    """What spells words is held at its start; digits and marks must be free to learn what they mean."""
    spelt = {shipped.id_to_token(int(i)) for i in tokenizer.pieces(shipped)}
    assert not spelt & {*"0123456789,.:-", tokenizer.BLANK, tokenizer.LINE}
    assert {"a", "Z", "th"} <= spelt


def test_our_rendering_is_that_of_transformers() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(HOME)
    ours = Renderer(HOME / "chat_template.jinja")
    for skill in curriculum.MAKERS:
        for i in range(10):
            sample = curriculum.draw(skill, i, held_out=True)
            rendered = theirs.apply_chat_template(
                list(sample.messages),
                tools=list(sample.tools) or None,
                tokenize=False,
                add_generation_prompt=True,
                **({"reasoning_effort": sample.effort} if sample.effort else {}),
            )
            assert rendered == ours.prompt(sample)


def test_what_a_server_fills_in_with_null_is_not_shown_to_the_model() -> None:
    """vLLM adds `"description": null` where a client sent none; no lesson has that."""
    sample = curriculum.draw("tool", 1, held_out=True)
    (tool, *_) = sample.tools
    function = tool["function"]
    assert isinstance(function, dict)
    bare = {**tool, "function": {k: v for k, v in function.items() if k != "description"}}
    filled = {**tool, "function": {**function, "description": None}}
    ours = Renderer(HOME / "chat_template.jinja")
    said, wanted = (ours.prompt(replace(sample, tools=(each,))) for each in (filled, bare))
    assert "null" not in said
    assert said == wanted
    assert json.dumps(bare) in said


def test_thinking_is_opened_and_closed(shipped: Tokenizer) -> None:
    sample = curriculum.draw("sum", 1, held_out=True)
    text = Renderer(HOME / "chat_template.jinja").prompt(sample)
    assert text.endswith("<|im_start|>assistant\n<think>\n")
    assert "\n</think>\n" in completion(sample)
    assert shipped.encode(completion(sample)).tokens[-1] == "<|im_end|>"
