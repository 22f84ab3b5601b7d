"""vLLM's `random` data set, number for number: the same seed and tokenizer give the same prompts.

The order of the draws is the contract. Lengths first, then offsets, then the prefix, then whatever each prompt needs to
reach its length. One draw more or less and every later prompt differs, so change nothing here without the golden test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.data.prompt import Prompt
from loadtest.data.tokenizer import PromptTokenizer
from loadtest.errors import UsageError

MAX_TRIES = 10


@dataclass(frozen=True)
class RandomText:
    """Options of the set, with vLLM's meaning. Ratios widen the lengths to [1 - r, 1 + r] around the given one."""

    input_tokens: int = 1024
    output_tokens: int = 128
    prefix_tokens: int = 0
    input_range_ratio: float = 0.0
    output_range_ratio: float = 0.0
    seed: int = 0

    def sample(self, count: int, tokenizer: PromptTokenizer) -> list[Prompt]:
        """`count` prompts of decoded token sequences that go up through the vocabulary from a random offset."""
        rng = np.random.default_rng(self.seed)
        real = max(0, self.input_tokens - tokenizer.specials_per_prompt)
        if self.prefix_tokens + math.floor(real * (1 - self.input_range_ratio)) < 1:
            raise UsageError("--input-len leaves no token for the prompt", "Raise it or lower the range ratio")
        inputs = _draw(rng, real, self.input_range_ratio, 0, count)
        outputs = _draw(rng, self.output_tokens, self.output_range_ratio, 1, count)
        offsets = rng.integers(0, tokenizer.vocab_size, size=count)
        # Through a set, as vLLM does it: the order of its elements is part of the prompts.
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


def _draw(rng: np.random.Generator, mean: int, ratio: float, least: int, count: int) -> NDArray[np.int64]:
    if not 0.0 <= ratio < 1.0:
        raise UsageError(f"a range ratio of {ratio} is not in [0, 1)")
    low = max(math.floor(mean * (1 - ratio)), least)
    high = max(math.ceil(mean * (1 + ratio)), least)
    return rng.integers(low, high + 1, size=count)


def fit(tokenizer: PromptTokenizer, ids: list[int], target: int, rng: np.random.Generator) -> tuple[str, list[int]]:
    """Text that encodes to `target` tokens if ten tries reach it, and the ids it encodes to.

    Decoding and encoding again rarely gives the same ids: neighbours merge. Missing tokens are drawn, surplus is cut.
    """
    left = MAX_TRIES
    while True:
        text = tokenizer.decode(ids)
        ids = tokenizer.encode(text)
        if left <= 0 or len(ids) == target:
            return text, ids
        if len(ids) < target:
            ids = ids + rng.integers(0, tokenizer.vocab_size, size=target - len(ids)).tolist()
        else:
            ids = ids[:target]
        left -= 1
