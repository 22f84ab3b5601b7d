"""From a data set's name and options to prompts."""

from __future__ import annotations

from collections.abc import Callable

from loadtest.data.random_text import RandomText
from loadtest.errors import DataError
from loadtest.options import DataOptions
from loadtest.prompt import Prompt
from loadtest.tokens import Tokens


def _random(options: DataOptions, tokens: Tokens | None, count: int) -> list[Prompt]:
    return random_text(options).sample(count, needed(tokens))


def random_text(options: DataOptions) -> RandomText:
    """vLLM's random set with these options."""
    return RandomText(
        input_tokens=options.input_len,
        output_tokens=options.output_len,
        prefix_tokens=options.prefix_len,
        input_range_ratio=options.input_range_ratio,
        output_range_ratio=options.output_range_ratio,
        seed=options.seed,
    )


def needed(tokens: Tokens | None) -> Tokens:
    """The tokenizer, where the set cannot do without."""
    if tokens is None:
        raise DataError(
            "this data set needs the model's tokenizer, and the server's model is not a folder here",
            "Give --tokenizer the model's folder or its tokenizer.json",
        )
    return tokens


DATASETS: dict[str, Callable[[DataOptions, Tokens | None, int], list[Prompt]]] = {
    "random": _random,
}
FORCED = frozenset({"random", "prefixes", "images"})
"""Made-up prompts: the answer's length is forced unless told otherwise, as vLLM does for `random`."""


def sample(options: DataOptions, tokens: Tokens | None, count: int) -> list[Prompt]:
    """`count` prompts of the chosen set."""
    return DATASETS[options.dataset](options, tokens, count)
