"""Data sets have the lengths, seeds and classes of their options, and errors name the file and the remedy."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtest.api.requests import Api, BodySpec, encode_body
from loadtest.data.datasets import sample
from loadtest.data.images import draw, png
from loadtest.data.prompt import DatasetSpec
from loadtest.data.tokenizer import PromptTokenizer, load_tokenizer
from loadtest.errors import DataError, UsageError

STEP_TINY = Path(__file__).parents[2] / "models" / "step-tiny"
OPTIONS = DatasetSpec(input_len=60, output_len=9)


@pytest.mark.parametrize("name", ["random", "natural", "prefixes", "sessions", "tools", "images"])
def test_the_same_seed_gives_the_same_prompts(tokenizer: PromptTokenizer, name: str) -> None:
    options = replace(OPTIONS, dataset=name, image_size=(24, 16))
    assert sample(options, tokenizer, 6) == sample(options, tokenizer, 6)
    assert sample(options, tokenizer, 6) != sample(replace(options, seed=1), tokenizer, 6)


def test_natural_text_is_about_as_long_as_asked_and_never_the_same(tokenizer: PromptTokenizer) -> None:
    prompts = sample(replace(OPTIONS, dataset="natural", input_len=300), tokenizer, 20)
    assert len({prompt.text for prompt in prompts}) == 20
    assert all(abs(len(tokenizer.encode(prompt.text)) - 300) < 30 for prompt in prompts)


def test_prefixes_are_shared_evenly(tokenizer: PromptTokenizer) -> None:
    prompts = sample(replace(OPTIONS, dataset="prefixes", prefix_len=40, prefixes=3), tokenizer, 12)
    heads = Counter(prompt.text[:40] for prompt in prompts)
    assert sorted(heads.values()) == [4, 4, 4]


def test_sessions_have_turns_and_pauses(tokenizer: PromptTokenizer) -> None:
    prompts = sample(replace(OPTIONS, dataset="sessions", turns=3, think_s=2.0), tokenizer, 7)
    assert [(prompt.session, prompt.turn) for prompt in prompts] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
    ]
    assert [prompt.think_s > 0 for prompt in prompts] == [False, True, True, False, True, True, False]


def test_images_are_png() -> None:
    image = png(draw(20, 10, np.random.default_rng(0)))
    assert image.startswith(b"\x89PNG")
    assert struct.unpack(">II", image[16:24]) == (20, 10)
    length = struct.unpack(">I", image[33:37])[0]
    assert len(zlib.decompress(image[41 : 41 + length])) == 10 * (1 + 20 * 3)


def test_each_api_gets_its_own_shape(tokenizer: PromptTokenizer) -> None:
    (prompt,) = sample(replace(OPTIONS, dataset="images", image_size=(8, 8)), tokenizer, 1)
    openai = json.loads(encode_body(BodySpec(Api.CHAT, "m"), prompt))
    claude = json.loads(encode_body(BodySpec(Api.MESSAGES, "m"), prompt))
    assert openai["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert claude["messages"][0]["content"][1]["source"]["media_type"] == "image/png"
    assert claude["max_tokens"] == openai["max_completion_tokens"] == 9
    (tool,) = sample(replace(OPTIONS, dataset="tools"), tokenizer, 1)
    claude = json.loads(encode_body(BodySpec(Api.MESSAGES, "m"), tool))
    assert claude["tools"][0]["input_schema"]["type"] == "object"
    assert claude["tool_choice"] == {"type": "auto"}


def test_a_prompt_wins_over_the_runs_extra_body_and_that_over_the_defaults() -> None:
    from loadtest.data.prompt import Prompt

    spec = BodySpec(Api.CHAT, "m", ignore_eos=True, extra={"temperature": 0, "stream_options": None})
    body = json.loads(encode_body(spec, Prompt(text="x", output_tokens=1, extra={"temperature": 1})))
    assert (body["temperature"], body["stream_options"], body["ignore_eos"]) == (1, None, True)


def test_a_set_that_needs_the_tokenizer_says_so() -> None:
    with pytest.raises(DataError, match="tokenizer"):
        sample(replace(OPTIONS, dataset="random"), None, 1)
    with pytest.raises(UsageError, match="--dataset-path"):
        sample(replace(OPTIONS, dataset="jsonl"), None, 1)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer("/nowhere")


def test_random_prompts_have_the_lengths_of_their_ratios(tokenizer: PromptTokenizer) -> None:
    spec = replace(OPTIONS, input_len=40, output_len=20, input_range_ratio=0.5, output_range_ratio=0.25)
    prompts = sample(spec, tokenizer, 40)
    lengths = {prompt.prompt_tokens for prompt in prompts}
    assert all(20 <= length <= 60 for length in lengths) and len(lengths) > 10
    assert {prompt.output_tokens for prompt in prompts} <= set(range(15, 26))
    exact = sample(replace(OPTIONS, input_len=40), tokenizer, 20)
    assert all(prompt.prompt_tokens == len(tokenizer.encode(prompt.text)) for prompt in exact)


def test_a_random_prefix_is_shared_by_all_prompts(tokenizer: PromptTokenizer) -> None:
    prompts = sample(replace(OPTIONS, input_len=20, prefix_len=30), tokenizer, 8)
    assert len({prompt.text[:40] for prompt in prompts}) == 1
    assert len({prompt.text for prompt in prompts}) == 8
    assert all(45 <= prompt.prompt_tokens <= 52 for prompt in prompts)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (replace(OPTIONS, input_len=0), "leaves no token"),
        (replace(OPTIONS, input_range_ratio=1.0, prefix_len=1), r"1.0 is not in \[0, 1\)"),
        (replace(OPTIONS, output_range_ratio=-0.1), r"-0.1 is not in \[0, 1\)"),
        (replace(OPTIONS, dataset="prefixes", prefix_len=60), "--prefix-len must be below --input-len"),
    ],
)
def test_impossible_lengths_are_refused(tokenizer: PromptTokenizer, spec: DatasetSpec, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        sample(spec, tokenizer, 3)


@pytest.mark.parametrize("name", ["random", "prefixes", "sharegpt"])
def test_sets_that_are_counted_in_tokens_need_a_tokenizer(name: str) -> None:
    with pytest.raises(DataError, match="--tokenizer"):
        sample(replace(OPTIONS, dataset=name, file="x"), None, 3)


@pytest.mark.parametrize("name", ["natural", "sessions", "tools", "images"])
def test_text_sets_work_without_a_tokenizer(name: str) -> None:
    prompts = sample(replace(OPTIONS, dataset=name, image_size=(8, 8), input_len=100), None, 4)
    assert len(prompts) == 4
    assert {prompt.prompt_tokens for prompt in prompts} == {0}
    assert all(300 < len(prompts[0].text) < 700 for _ in prompts)


def test_the_users_text_is_used_and_repeated_where_it_is_short(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"Paragraph {number} of the text, with some words in it." for number in range(40)))
    spec = replace(OPTIONS, dataset="natural", file=str(file), input_len=1500)
    (prompt,) = sample(spec, tokenizer, 1)
    assert "Paragraph 7 of the text" in prompt.text
    assert abs(len(tokenizer.encode(prompt.text)) - 1500) < 30
    assert prompt.prompt_tokens == pytest.approx(1500, abs=30)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot read the text"), (b"\xff\xfe\x00", "cannot read the text"), (b"short", "only 5 characters")],
)
def test_a_text_that_cannot_be_used_is_an_error(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"{problem}.*--dataset-path"):
        sample(replace(OPTIONS, dataset="natural", file=str(file)), None, 1)


def test_tools_are_in_the_body_of_every_prompt(tokenizer: PromptTokenizer) -> None:
    for prompt in sample(replace(OPTIONS, dataset="tools"), tokenizer, 3):
        assert prompt.extra["tool_choice"] == "auto"
        assert "get_weather" in json.dumps(prompt.extra["tools"])
        assert "What is the weather in" in prompt.text


def test_image_prompts_have_as_many_different_images_as_asked(tokenizer: PromptTokenizer) -> None:
    prompts = sample(replace(OPTIONS, dataset="images", images=2, image_size=(16, 8)), tokenizer, 3)
    urls = [url for prompt in prompts for url in prompt.images]
    assert len(set(urls)) == 6
    assert all(struct.unpack(">II", base64.b64decode(url.partition(",")[2])[16:24]) == (16, 8) for url in urls)
