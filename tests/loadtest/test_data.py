"""Data sets give what their files and options say, and say what is wrong with a file."""

from __future__ import annotations

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
from loadtest.data.from_file import trace
from loadtest.data.images import draw, png
from loadtest.data.prompt import DatasetSpec
from loadtest.data.tokenizer import PromptTokenizer, load_tokenizer
from loadtest.errors import DataError, UsageError

STEP_TINY = Path(__file__).parents[2] / "models" / "step-tiny"
OPTIONS = DatasetSpec(input_len=60, output_len=9)


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return load_tokenizer(str(STEP_TINY))


def lines(path: Path, *rows: object) -> str:
    file = path / "data.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


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


def test_jsonl_takes_prompts_messages_and_batch_lines(tmp_path: Path) -> None:
    message = {"role": "user", "content": "hi"}
    file = lines(
        tmp_path,
        {"prompt": "a", "output_tokens": 3, "class": "short"},
        {"messages": [message], "max_tokens": 5, "temperature": 0.5, "session": 2},
        {"custom_id": "x", "body": {"model": "gone", "messages": [message]}},
    )
    first, second, third, again = sample(replace(OPTIONS, dataset="jsonl", file=file), None, 4)
    assert (first.text, first.output_tokens, first.kind) == ("a", 3, "short")
    assert (second.output_tokens, second.extra, second.session) == (5, {"temperature": 0.5}, 2)
    assert (third.output_tokens, third.extra) == (9, {})
    assert again == first


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', ""])
def test_a_broken_line_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(text)
    with pytest.raises(DataError):
        sample(replace(OPTIONS, dataset="jsonl", file=str(file)), None, 1)


def test_a_mix_keeps_its_weights_and_names_its_classes(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    file = tmp_path / "mix.json"
    file.write_text(json.dumps([
        {"class": "chat", "weight": 3, "dataset": "random", "input_len": 20, "output_len": 4},
        {"class": "docs", "weight": 1, "dataset": "natural", "input_len": 90, "output_len": 8},
    ]))  # fmt: skip
    prompts = sample(replace(OPTIONS, dataset="mix", file=str(file)), tokenizer, 200)
    kinds = Counter(prompt.kind for prompt in prompts)
    assert 120 <= kinds["chat"] <= 180
    assert {(prompt.kind, prompt.output_tokens) for prompt in prompts} == {("chat", 4), ("docs", 8)}


def test_a_mix_refuses_unknown_options(tmp_path: Path) -> None:
    file = tmp_path / "mix.json"
    file.write_text('[{"class": "x", "dataset": "natural", "inputlen": 3}]')
    with pytest.raises(DataError, match="inputlen"):
        sample(replace(OPTIONS, dataset="mix", file=str(file)), None, 1)


def test_a_trace_keeps_its_times_and_shared_blocks(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    rows = [
        {"timestamp": 5000, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]},
        {"timestamp": 6000, "input_length": 700, "output_length": 9, "hash_ids": [1, 3]},
    ]
    first, second = trace(OPTIONS, tokenizer, 0, file=lines(tmp_path, *rows), speed=2.0)
    assert (first.at_s, second.at_s) == (0.0, 0.5)
    assert first.text[:500] == second.text[:500]
    assert first.text[-100:] != second.text[-100:]
    assert (first.output_tokens, second.prompt_tokens) == (5, 700)


def test_azures_trace_is_read(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,37,14\n2023-11-16 18:17:04.9799600,39,2\n"
    )
    first, second = trace(OPTIONS, tokenizer, 0, file=str(file), speed=1.0)
    assert (first.prompt_tokens, second.output_tokens, second.at_s) == (37, 2, pytest.approx(1.0))


def test_pictures_are_png() -> None:
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
