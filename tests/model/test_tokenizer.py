"""The tokenizer loses nothing and spells unknown words alike everywhere; our rendering is transformers' own."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from models.training import checkpoint, tokenizer
from models.training.encoding import Renderer, completion, make_tokenizer
from models.training.model.dimensions import ModelDimensions
from models.training.tasks import curriculum
from models.training.tasks.tool_catalogue import KNOWN_TOOLS

HOME = checkpoint.HOME


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return Tokenizer.from_file(str(HOME / "tokenizer.json"))


@pytest.mark.parametrize(
    "text", ["", "Hello, world!", "  two  blanks\n\ttab", "naïve 日本語 🙂", '{"a": [1, 2.5, null]}', "\x00\x7f"]
)
def test_text_survives_the_round_trip(tokens: Tokenizer, text: str) -> None:
    assert tokens.decode(tokens.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.slow
def test_the_curriculum_still_gives_the_shipped_tokenizer(tokens: Tokenizer) -> None:
    """Another one would make saved states and the shipped weights useless."""
    made = make_tokenizer(ModelDimensions().vocab, Renderer(checkpoint.CHAT_TEMPLATE))
    assert made.to_str() == tokens.to_str()


def test_it_has_as_many_entries_as_the_model(tokens: Tokenizer) -> None:
    assert tokens.get_vocab_size() == ModelDimensions().vocab


def test_digits_stand_alone(tokens: Tokenizer) -> None:
    assert tokens.encode("1234").tokens == ["1", "2", "3", "4"]


@pytest.mark.parametrize("digit", range(10))
def test_a_point_before_a_digit_is_no_full_stop(tokens: Tokenizer, digit: int) -> None:
    assert tokens.encode(f"31.{digit}").tokens == ["3", "1", f".{digit}"]
    assert tokens.encode("31.").tokens == ["3", "1", "."]


@pytest.mark.parametrize("word", ["Quixbury", "zorvath", "Antananarivo"])
def test_an_unknown_word_is_spelt_the_same_after_a_blank(tokens: Tokenizer, word: str) -> None:
    bare = tokens.encode(word).ids
    assert tokens.encode(f"in {word}").ids[-len(bare) :] == bare
    assert tokens.encode(f'"{word}').ids[-len(bare) :] == bare


@pytest.mark.parametrize("before", ['"', "\n", "1. ", ": ", ", "])
def test_a_word_of_the_fixed_wording_is_the_same_after_any_punctuation(tokens: Tokenizer, before: str) -> None:
    """What is quoted in a request is found again at the start of a value or of a list's item."""
    said = "the end"
    assert tokens.encode(before + said).tokens[-len(tokens.encode(said)) :] == tokens.encode(said).tokens


@pytest.mark.parametrize("topic", sorted({tool.topic for tool in KNOWN_TOOLS}))
def test_what_a_call_is_for_is_one_token(tokens: Tokenizer, topic: str) -> None:
    """One decision, which the tool's name then follows from."""
    assert len(tokens.encode(f"For {topic}").ids) == len(tokens.encode("For").ids) + 1


@pytest.mark.parametrize("marker", tokenizer.SPECIAL + tokenizer.ADDED)
def test_markers_and_phrases_are_one_token(tokens: Tokenizer, marker: str) -> None:
    assert len(tokens.encode(marker).ids) == 1


@pytest.mark.parametrize("phrase", tokenizer.PHRASES)
def test_the_template_still_writes_every_phrase(tokens: Tokenizer, phrase: str) -> None:
    """A phrase that nothing writes any more would be an entry for nothing, and its parts would be untrained."""
    renderer = Renderer(HOME / "chat_template.jinja")
    samples = [curriculum.draw("result", i, held_out=False) for i in range(40)]
    wanted = tokens.token_to_id(phrase)
    assert any(wanted in tokens.encode(renderer.prompt(sample)).ids for sample in samples)


def test_digits_and_marks_spell_no_word(tokens: Tokenizer) -> None:
    """Output rows of spelling pieces are frozen; those of digits and punctuation must be trained."""
    spelt = {tokens.id_to_token(int(i)) for i in tokenizer.spelling_pieces(tokens)}
    assert not spelt & {*"0123456789,.:-", tokenizer.BLANK, tokenizer.LINE}
    assert {"a", "Z", "th"} <= spelt


def test_our_rendering_is_that_of_transformers() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(HOME)
    ours = Renderer(HOME / "chat_template.jinja")
    for kind in curriculum.TASK_GENERATORS:
        for i in range(10):
            sample = curriculum.draw(kind, i, held_out=True)
            rendered = theirs.apply_chat_template(
                list(sample.messages),
                tools=list(sample.tools) or None,
                tokenize=False,
                add_generation_prompt=True,
                **({"reasoning_effort": sample.effort} if sample.effort else {}),
            )
            assert rendered == ours.prompt(sample)


def test_what_a_server_fills_in_with_null_is_not_shown_to_the_model() -> None:
    """vLLM adds `"description": null` where a client sent none; no task has that."""
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


def test_thinking_is_opened_and_closed(tokens: Tokenizer) -> None:
    sample = curriculum.draw("sum", 1, held_out=True)
    text = Renderer(HOME / "chat_template.jinja").prompt(sample)
    assert text.endswith("<|im_start|>assistant\n<think>\n")
    assert "\n</think>\n" in completion(sample)
    assert tokens.encode(completion(sample)).tokens[-1] == "<|im_end|>"
