"""Prompts from files (JSONL, ShareGPT, mixes, traces) and tokenizers; errors name the file and the remedy."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from loadtest.data.datasets import sample
from loadtest.data.from_file import trace
from loadtest.data.prompt import DatasetSpec
from loadtest.data.tokenizer import PromptTokenizer, load_tokenizer
from loadtest.errors import DataError, UsageError

STEP_TINY = Path(__file__).parents[2] / "models" / "step-tiny"
OPTIONS = DatasetSpec(input_len=60, output_len=9)


def lines(path: Path, *rows: object) -> str:
    file = path / "data.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


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
def test_a_broken_line_is_an_error(tmp_path: Path, text: str) -> None:
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


def test_jsonl_gives_every_line_once_without_a_count(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    file = lines(tmp_path, *({"prompt": f"prompt {number}", "max_tokens": 3, "output_len": 4} for number in range(3)))
    prompts = sample(replace(OPTIONS, dataset="jsonl", file=file), tokenizer, 0)
    assert [prompt.text for prompt in prompts] == ["prompt 0", "prompt 1", "prompt 2"]
    assert {(prompt.output_tokens, len(prompt.extra)) for prompt in prompts} == {(4, 0)}, (
        "the first of the names counts"
    )
    assert prompts[0].prompt_tokens == len(tokenizer.encode("prompt 0"))


def test_errors_in_a_file_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": 3}\n')
    with pytest.raises(DataError, match="line 2 has neither"):
        sample(replace(OPTIONS, dataset="jsonl", file=str(file)), None, 1)
    file.write_text('{"prompt": "a"}\n\n{\n')
    with pytest.raises(DataError, match="line 3: "):
        sample(replace(OPTIONS, dataset="jsonl", file=str(file)), None, 1)


@pytest.mark.parametrize("name", ["jsonl", "sharegpt", "mix"])
def test_a_file_that_is_not_named_or_absent_is_an_error(tokenizer: PromptTokenizer, name: str) -> None:
    with pytest.raises(UsageError, match="Name it with --dataset-path"):
        sample(replace(OPTIONS, dataset=name), tokenizer, 1)
    with pytest.raises(DataError, match=r"cannot read '/absent'.*Check --dataset-path"):
        sample(replace(OPTIONS, dataset=name, file="/absent"), tokenizer, 1)


LONG_ENOUGH = "one two three four five six seven eight"


def conversation(question: str, answer: str) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_sharegpt_gives_usable_first_turns_with_the_answers_length(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    file = tmp_path / "share.json"
    usable = [conversation(f"{LONG_ENOUGH} {number}", LONG_ENOUGH) for number in range(6)]
    unusable = [
        conversation("", LONG_ENOUGH),
        conversation(LONG_ENOUGH, ""),
        conversation(LONG_ENOUGH * 200, LONG_ENOUGH),
        conversation(LONG_ENOUGH, LONG_ENOUGH * 300),
        {"conversations": [{"value": "alone"}]},
        {"id": 3},
    ]
    file.write_text(json.dumps([*usable, *unusable]))
    spec = replace(OPTIONS, dataset="sharegpt", file=str(file))
    prompts = sample(spec, tokenizer, 8)
    assert {prompt.text for prompt in prompts} == {f"{LONG_ENOUGH} {number}" for number in range(6)}
    assert prompts[6:] == prompts[:2], "they are repeated where there are too few"
    assert {prompt.output_tokens for prompt in prompts} == {len(tokenizer.encode(LONG_ENOUGH, add_special_tokens=True))}
    assert all(
        prompt.prompt_tokens == len(tokenizer.encode(prompt.text, add_special_tokens=True)) for prompt in prompts
    )
    assert sample(spec, tokenizer, 2) == prompts[:2]
    assert sample(replace(spec, seed=1), tokenizer, 8) != prompts
    file.write_text(json.dumps(unusable))
    with pytest.raises(DataError, match="no conversation of usable length"):
        sample(spec, tokenizer, 1)


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[1]"])
@pytest.mark.parametrize("name", ["sharegpt", "mix"])
def test_a_file_that_is_no_list_of_objects_is_an_error(
    tmp_path: Path, tokenizer: PromptTokenizer, name: str, text: str
) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DataError, match="is not"):
        sample(replace(OPTIONS, dataset=name, file=str(file)), tokenizer, 1)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"dataset": "natural", "weight": 0}, "a weight of 0"),
        ({"dataset": "natural", "weight": "x"}, "a weight of 'x'"),
        ({"dataset": "mix"}, "class '0' has unusable options dataset"),
        ({"dataset": "nonsense", "class": "c"}, "class 'c' has an unknown dataset 'nonsense'"),
        ({"dataset": "natural", "num_prompts": 3}, "num_prompts"),
    ],
)
def test_a_mix_says_what_is_wrong_with_a_class(tmp_path: Path, part: object, problem: str) -> None:
    file = tmp_path / "mix.json"
    file.write_text(json.dumps([part]))
    with pytest.raises(DataError, match=problem):
        sample(replace(OPTIONS, dataset="mix", file=str(file)), None, 1)


def test_classes_of_a_mix_have_seeds_of_their_own_and_inherit_options(
    tmp_path: Path, tokenizer: PromptTokenizer
) -> None:
    file = tmp_path / "mix.json"
    file.write_text(json.dumps([{"dataset": "random"}, {"dataset": "random"}]))
    prompts = sample(replace(OPTIONS, dataset="mix", file=str(file)), tokenizer, 20)
    assert {prompt.kind for prompt in prompts} == {"0", "1"}
    assert {prompt.output_tokens for prompt in prompts} == {OPTIONS.output_len}
    assert len({prompt.text for prompt in prompts}) >= 18, "with one seed both would have the same ten"


def test_a_trace_can_be_cut_and_its_times_may_be_seconds(tmp_path: Path) -> None:
    rows = [{"at_s": 2.0 + number, "input_len": 20, "output_len": 0} for number in range(5)]
    prompts = trace(OPTIONS, None, 3, file=lines(tmp_path, *rows), speed=1.0)
    assert [prompt.at_s for prompt in prompts] == [0.0, 1.0, 2.0]
    assert {prompt.output_tokens for prompt in prompts} == {1}, "a request asks for one token at least"
    assert len({prompt.text for prompt in prompts}) == 3


def test_a_traces_prompts_are_as_long_as_recorded(tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    rows = [
        {"timestamp": 0, "input_length": length, "output_length": 1, "hash_ids": [1, 2, 3]} for length in (100, 1400)
    ]
    for prompt in trace(OPTIONS, tokenizer, 0, file=lines(tmp_path, *rows), speed=1.0):
        assert len(tokenizer.encode(prompt.text)) == pytest.approx(prompt.prompt_tokens, rel=0.05)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("t.jsonl", "", "has no requests"),
        ("t.jsonl", '{"timestamp": 0}', "timestamp, input_length and output_length are wanted"),
        ("t.jsonl", '{"timestamp": "x", "input_length": 1, "output_length": 1}', "are wanted"),
        ("t.jsonl", "{", "line 1"),
        ("t.csv", "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,1\n", "GeneratedTokens are wanted"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n", "GeneratedTokens are wanted"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1\n", "GeneratedTokens are wanted"),
    ],
)
def test_a_broken_trace_is_an_error(tmp_path: Path, name: str, text: str, problem: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(DataError, match=problem):
        trace(OPTIONS, None, 0, file=str(file), speed=1.0)


def test_an_absent_trace_names_its_flag() -> None:
    with pytest.raises(DataError, match="Check --trace"):
        trace(OPTIONS, None, 0, file="/absent.jsonl", speed=1.0)


class TestTokenizer:
    def test_a_folder_or_its_file_is_loaded(self, tokenizer: PromptTokenizer) -> None:
        same = load_tokenizer(str(STEP_TINY / "tokenizer.json"))
        assert same.encode("some text") == tokenizer.encode("some text")
        assert same.decode(same.encode("some text")) == "some text"
        assert tokenizer.special_ids and max(tokenizer.special_ids) >= tokenizer.vocab_size - 1000

    def test_a_tokenizer_that_is_not_there_or_broken_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no tokenizer at .*--tokenizer"):
            load_tokenizer(str(tmp_path))
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(DataError, match=r"is not a tokenizer.json"):
            load_tokenizer(str(tmp_path))

    def test_special_tokens_and_clean_up_come_from_the_files_beside_it(self, tmp_path: Path) -> None:
        model = models.WordLevel({"[UNK]": 0, "is": 1, "n't": 2, ".": 3, "<a>": 4, "<b>": 5}, unk_token="[UNK]")
        made = Tokenizer(model)
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]  # tokenizers' own types lack it
        made.enable_padding(length=9)
        made.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "special_tokens_map.json").write_text(
            '{"unk_token": {"content": "[UNK]"}, "additional_special_tokens": ["<a>"]}'
        )
        (tmp_path / "tokenizer_config.json").write_text(
            '{"clean_up_tokenization_spaces": true, "extra_special_tokens": {"b": "<b>"}}'
        )
        loaded = load_tokenizer(str(tmp_path))
        assert loaded.encode("is n't .") == [1, 2, 3], "without padding"
        assert loaded.decode([1, 2, 3]) == "isn't."
        assert loaded.special_ids == [0, 5]
        (tmp_path / "tokenizer_config.json").write_text("{}")
        plain = load_tokenizer(str(tmp_path))
        assert plain.decode([1, 2, 3]) == "is n't ."
        assert plain.special_ids == [0, 4]
        (tmp_path / "tokenizer_config.json").write_text("{")
        with pytest.raises(DataError, match="is not JSON"):
            load_tokenizer(str(tmp_path))
