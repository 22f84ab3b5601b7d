"""Prompts of random tokens: vLLM's `random` data set, and prompts that share prefixes.

`RandomText` gives the same prompts as vLLM's benchmark for the same seed and tokenizer. For that, the order of draws
from the generator must be the same: lengths, offsets, the prefix, then what each prompt needs to reach its length. The
golden test (`tests/loadtest/test_random_text.py`) compares them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.data.prompt import DatasetSpec, Prompt
from loadtest.data.tokenizer import PromptTokenizer, require_tokenizer
from loadtest.errors import UsageError

MAX_TRIES = 10


@dataclass(frozen=True)
class RandomText:
    """Options of the set, as vLLM defines them. A ratio r draws lengths from [1 - r, 1 + r] times the given one."""

    input_tokens: int = 1024
    output_tokens: int = 128
    prefix_tokens: int = 0
    input_range_ratio: float = 0.0
    output_range_ratio: float = 0.0
    seed: int = 0

    def sample(self, count: int, tokenizer: PromptTokenizer) -> list[Prompt]:
        """`count` prompts: each decodes consecutive token ids from a random offset in the vocabulary."""
        rng = np.random.default_rng(self.seed)
        real = max(0, self.input_tokens - tokenizer.specials_per_prompt)
        if self.prefix_tokens + math.floor(real * (1 - self.input_range_ratio)) < 1:
            raise UsageError("--input-len leaves no token for the prompt", "Raise it or lower the range ratio")
        inputs = _draw_lengths(rng, real, self.input_range_ratio, 0, count)
        outputs = _draw_lengths(rng, self.output_tokens, self.output_range_ratio, 1, count)
        offsets = rng.integers(0, tokenizer.vocab_size, size=count)
        # Made from a set, as in vLLM: the set's iteration order decides the prompts.
        allowed = np.array(list(set(np.arange(tokenizer.vocab_size)) - set(tokenizer.special_ids)))
        prefix = self._prefix(rng, tokenizer, allowed)
        prompts = []
        for index in range(count):
            inner = allowed[(int(offsets[index]) + index + np.arange(int(inputs[index]))) % len(allowed)].tolist()
            text, ids = fit(tokenizer, prefix + inner, self.prefix_tokens + int(inputs[index]), rng)
            prompts.append(Prompt(text=text, prompt_tokens=len(ids), output_tokens=int(outputs[index])))
        return prompts

    def _prefix(self, rng: np.random.Generator, tokenizer: PromptTokenizer, allowed: NDArray[np.int64]) -> list[int]:
        if self.prefix_tokens <= 0:
            return []
        drawn = allowed[rng.integers(0, len(allowed), size=self.prefix_tokens)].tolist()
        return fit(tokenizer, drawn, self.prefix_tokens, rng)[1]


def _draw_lengths(rng: np.random.Generator, mean: int, ratio: float, minimum: int, count: int) -> NDArray[np.int64]:
    if not 0.0 <= ratio < 1.0:
        raise UsageError(f"a range ratio of {ratio} is not in [0, 1)")
    low = max(math.floor(mean * (1 - ratio)), minimum)
    high = max(math.ceil(mean * (1 + ratio)), minimum)
    return rng.integers(low, high + 1, size=count)


def fit(tokenizer: PromptTokenizer, ids: list[int], target: int, rng: np.random.Generator) -> tuple[str, list[int]]:
    """Text that encodes to `target` tokens if `MAX_TRIES` reach that, and the ids it encodes to.

    Decoding and encoding again rarely gives the same ids, because neighbours merge. Missing tokens are drawn, surplus
    ones are dropped.
    """
    tries_left = MAX_TRIES
    while True:
        text = tokenizer.decode(ids)
        ids = tokenizer.encode(text)
        if tries_left <= 0 or len(ids) == target:
            return text, ids
        if len(ids) < target:
            ids = ids + rng.integers(0, tokenizer.vocab_size, size=target - len(ids)).tolist()
        else:
            ids = ids[:target]
        tries_left -= 1


def random_text(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """The data set `random`."""
    text = RandomText(
        input_tokens=spec.input_len,
        output_tokens=spec.output_len,
        prefix_tokens=spec.prefix_len,
        input_range_ratio=spec.input_range_ratio,
        output_range_ratio=spec.output_range_ratio,
        seed=spec.seed,
    )
    return text.sample(count, require_tokenizer(tokenizer))


def prefixes(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """The data set `prefixes`: shuffled prompts that share one of a few prefixes, to measure prefix caching."""
    tokenizer = require_tokenizer(tokenizer)
    rng = np.random.default_rng(spec.seed)
    prefix_tokens = spec.prefix_len or max(1, spec.input_len // 2)
    if prefix_tokens >= spec.input_len:
        raise UsageError("--prefix-len must be below --input-len")

    def draw_ids(length: int) -> list[int]:
        return fit(tokenizer, rng.integers(0, tokenizer.vocab_size, size=length).tolist(), length, rng)[1]

    shared = [draw_ids(prefix_tokens) for _ in range(spec.prefixes)]
    prompts = []
    for index in range(count):
        ids = shared[index % len(shared)] + draw_ids(spec.input_len - prefix_tokens)
        prompts.append(Prompt(text=tokenizer.decode(ids), prompt_tokens=len(ids), output_tokens=spec.output_len))
    random.Random(spec.seed).shuffle(prompts)
    return prompts
