"""Prompts from the user's own files: JSONL, ShareGPT, traces and mixes of other sets."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np

from loadtest.data.prompt import DatasetSpec, Json, Prompt
from loadtest.data.text import TextSource, load_text
from loadtest.data.tokenizer import PromptTokenizer
from loadtest.errors import DataError, UsageError

Sampler = Callable[[DatasetSpec, PromptTokenizer | None, int], list[Prompt]]
OUTPUT_FIELDS = ("output_tokens", "output_len", "max_tokens", "max_completion_tokens")
TRACE_BLOCK = 512
"""Tokens per `hash_ids` entry of a Mooncake trace."""


def _read(file: str | None, flag: str = "--dataset-path") -> bytes:
    if not file:
        raise UsageError("this data set is read from a file", f"Name it with {flag}")
    try:
        return Path(file).read_bytes()
    except OSError as bad:
        raise DataError(f"cannot read {file!r} ({bad.strerror})", f"Check {flag}") from bad


def _rows(file: str | None, flag: str = "--dataset-path") -> Iterator[dict[str, Json]]:
    for number, line in enumerate(_read(file, flag).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError as bad:
            raise DataError(f"{file}, line {number}: {bad}", "Every line must be a JSON object") from bad
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number} is not a JSON object")
        yield row


def _list(file: str | None, wanted: str) -> list[dict[str, Json]]:
    try:
        found = msgspec.json.decode(_read(file))
    except msgspec.DecodeError as bad:
        raise DataError(f"{file} is not JSON ({bad})", wanted) from bad
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found) or not found:
        raise DataError(f"{file} is not a list of objects", wanted)
    return found


def jsonl(options: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """Lines with `prompt` or `messages`; optional `output_tokens`, `class`, `session`; other fields go into the body.

    OpenAI's batch lines (`{"body": {...}}`) are understood. Fewer lines than requests are used again from the start.
    """
    rows = list(_rows(options.file))
    if not rows:
        raise DataError(f"{options.file} has no lines")
    prompts = [_from_row(row, number + 1, options, tokenizer) for number, row in enumerate(rows)]
    return [prompts[index % len(prompts)] for index in range(count or len(prompts))]


def _from_row(row: dict[str, Json], number: int, options: DatasetSpec, tokenizer: PromptTokenizer | None) -> Prompt:
    body = row.get("body")
    body = {**body} if isinstance(body, Mapping) else {**row}
    for name in ("model", "stream", "stream_options"):
        body.pop(name, None)
    text, messages = body.pop("prompt", ""), body.pop("messages", None)
    if not isinstance(text, str) or not (text or isinstance(messages, list)):
        raise DataError(f"{options.file}, line {number} has neither `prompt` nor `messages`")
    wanted = next((value for name in OUTPUT_FIELDS if isinstance(value := body.pop(name, None), int)), None)
    session = body.pop("session", -1)
    return Prompt(
        text=text,
        messages=[message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else (),
        prompt_tokens=len(tokenizer.encode(text)) if tokenizer and text else 0,
        output_tokens=wanted or options.output_len,
        kind=str(body.pop("class", "all")),
        session=session if isinstance(session, int) else -1,
        extra=body,
    )


def sharegpt(options: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """First question and answer length of each conversation, shuffled and filtered as vLLM's benchmark does."""
    if tokenizer is None:
        raise DataError("ShareGPT answers are measured in tokens", "Give --tokenizer")
    talks = _list(options.file, "A list of {conversations: [...]} is wanted")
    pairs = [pair for talk in talks if (pair := _first_pair(talk)) is not None]
    random.Random(options.seed).shuffle(pairs)
    prompts: list[Prompt] = []
    for question, answer in pairs:
        if len(prompts) == count:
            break
        asked = len(tokenizer.encode(question, add_special_tokens=True))
        said = len(tokenizer.encode(answer, add_special_tokens=True))
        # vLLM's bounds: no snippets, nothing beyond 1,024 in or 2,048 in all.
        if asked >= 4 and said >= 4 and asked <= 1024 and asked + said <= 2048:
            prompts.append(Prompt(text=question, prompt_tokens=asked, output_tokens=said))
    if not prompts:
        raise DataError(f"{options.file} has no conversation of usable length")
    return [prompts[index % len(prompts)] for index in range(count)]


def _first_pair(talk: dict[str, Json]) -> tuple[str, str] | None:
    turns = talk.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    texts = [str(turn.get("value", "")) for turn in turns[:2] if isinstance(turn, Mapping)]
    return (texts[0], texts[1]) if len(texts) == 2 else None


def mix(
    options: DatasetSpec, tokenizer: PromptTokenizer | None, count: int, samplers: Mapping[str, Sampler]
) -> list[Prompt]:
    """Several sets at once, from a JSON list of `{"class": name, "weight": w, "dataset": ..., other options}`."""
    parts = _list(options.file, "Write a list of classes, see docs/load-testing.md")
    known = {field.name for field in fields(DatasetSpec)} - {"num_prompts"}
    weights, made = [], []
    rng = np.random.default_rng([options.seed, 3])
    for position, part in enumerate(parts):
        settings = dict(part)
        name, weight = str(settings.pop("class", position)), _weight(settings.pop("weight", 1.0), options.file)
        unknown = set(settings) - known
        if unknown or settings.get("dataset") == "mix":
            raise DataError(f"{options.file}: class {name!r} has unusable options {sorted(unknown) or 'dataset'}")
        chosen = replace(options, **{"file": None, "seed": options.seed + position, **settings})  # type: ignore[arg-type]  # checked against the known names above
        weights.append(weight)
        made.append((name, chosen))
    kinds = rng.choice(len(made), size=count, p=np.asarray(weights) / sum(weights))
    pools = []
    for number, (name, chosen) in enumerate(made):
        some = samplers[chosen.dataset](chosen, tokenizer, max(1, int((kinds == number).sum())))
        pools.append(iter([replace(prompt, kind=name) for prompt in some]))
    return [next(pools[number]) for number in kinds]


def _weight(value: Json, file: str | None) -> float:
    if not isinstance(value, int | float) or value <= 0:
        raise DataError(f"{file}: a weight of {value!r}", "Weights are numbers above 0")
    return float(value)


def trace(
    options: DatasetSpec, tokenizer: PromptTokenizer | None, count: int, *, file: str, speed: float
) -> list[Prompt]:
    """A recorded load: when, how long the prompt, how long the answer; Mooncake JSONL or Azure's CSV.

    Equal `hash_ids` give equal text, so shared prefixes stay shared.
    """
    rng = np.random.default_rng(options.seed)
    corpus = load_text(None)
    source = TextSource(corpus, tokenizer, rng)
    prompts: list[Prompt] = []
    first: float | None = None
    for row in _trace_rows(file):
        if count and len(prompts) == count:
            break
        at_s, asked, said, blocks = row
        first = at_s if first is None else first
        if blocks:
            texts = [
                TextSource(corpus, tokenizer, np.random.default_rng([7, block])).passage(
                    min(TRACE_BLOCK, asked - i * TRACE_BLOCK)
                )[0]
                for i, block in enumerate(blocks)
                if asked > i * TRACE_BLOCK
            ]
            text = "\n".join(texts)
        else:
            text = source.passage(asked)[0]
        prompts.append(Prompt(text=text, prompt_tokens=asked, output_tokens=max(1, said), at_s=(at_s - first) / speed))
    if not prompts:
        raise DataError(f"{file} has no requests")
    return prompts


def _trace_rows(file: str) -> Iterator[tuple[float, int, int, list[int]]]:
    if file.endswith(".csv"):
        for row in csv.DictReader(_read(file, "--trace").decode().splitlines()):
            try:
                moment = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                yield moment, int(row["ContextTokens"]), int(row["GeneratedTokens"]), []
            except (KeyError, ValueError) as bad:
                raise DataError(f"{file}: {bad}", "TIMESTAMP, ContextTokens and GeneratedTokens are wanted") from bad
        return
    for entry in _rows(file, "--trace"):
        when = entry.get("timestamp", entry.get("at_s"))
        asked, said = (
            entry.get("input_length", entry.get("input_len")),
            entry.get("output_length", entry.get("output_len")),
        )
        if not isinstance(when, int | float) or not isinstance(asked, int) or not isinstance(said, int):
            raise DataError(f"{file}: {entry}", "timestamp, input_length and output_length are wanted")
        # Mooncake counts in milliseconds, `at_s` says what it is.
        seconds = float(when) if "at_s" in entry else float(when) / 1000
        blocks = entry.get("hash_ids", [])
        yield (
            seconds,
            asked,
            said,
            [int(block) for block in blocks if isinstance(block, int)] if isinstance(blocks, list) else [],
        )
