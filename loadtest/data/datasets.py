"""From a data set's name and options to prompts."""

from __future__ import annotations

import random

import numpy as np

from loadtest.data.from_file import Sampler, jsonl, sharegpt
from loadtest.data.from_file import mix as mix_of
from loadtest.data.images import images
from loadtest.data.prompt import DatasetSpec, Prompt
from loadtest.data.random_text import RandomText, fit
from loadtest.data.text import natural, sessions, tools
from loadtest.data.tokenizer import PromptTokenizer
from loadtest.errors import DataError, UsageError


def _random(options: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """vLLM's random set with these options."""
    made = RandomText(
        input_tokens=options.input_len,
        output_tokens=options.output_len,
        prefix_tokens=options.prefix_len,
        input_range_ratio=options.input_range_ratio,
        output_range_ratio=options.output_range_ratio,
        seed=options.seed,
    )
    return made.sample(count, needed(tokenizer))


def _prefixes(options: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """Prompts that share one of a few prefixes, shuffled: what a prefix cache and its routing are for."""
    known = needed(tokenizer)
    rng = np.random.default_rng(options.seed)
    shared = options.prefix_len or max(1, options.input_len // 2)
    if shared >= options.input_len:
        raise UsageError("--prefix-len must be below --input-len")

    def text_ids(length: int) -> list[int]:
        return fit(known, rng.integers(0, known.vocab_size, size=length).tolist(), length, rng)[1]

    heads = [text_ids(shared) for _ in range(options.prefixes)]
    prompts = []
    for index in range(count):
        ids = heads[index % len(heads)] + text_ids(options.input_len - shared)
        prompts.append(Prompt(text=known.decode(ids), prompt_tokens=len(ids), output_tokens=options.output_len))
    random.Random(options.seed).shuffle(prompts)
    return prompts


def _mix(options: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    return mix_of(options, tokenizer, count, DATASETS)


def needed(tokenizer: PromptTokenizer | None) -> PromptTokenizer:
    """The tokenizer, where the set cannot do without."""
    if tokenizer is None:
        raise DataError(
            "this data set needs the model's tokenizer, and the server's model is not a folder here",
            "Give --tokenizer the model's folder or its tokenizer.json",
        )
    return tokenizer


DATASETS: dict[str, Sampler] = {
    "random": _random,
    "natural": natural,
    "prefixes": _prefixes,
    "sessions": sessions,
    "tools": tools,
    "images": images,
    "jsonl": jsonl,
    "sharegpt": sharegpt,
    "mix": _mix,
}
FORCED = frozenset({"random", "prefixes", "images"})
"""Made-up prompts: the answer's length is forced unless told otherwise, as vLLM does for `random`."""


def sample(options: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """`count` prompts of the chosen set."""
    return DATASETS[options.dataset](options, tokenizer, count)
