"""The random data set is vLLM's own: same seed, same prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.data.random_text import RandomText
from loadtest.data.tokenizer import load_tokenizer

STEP_TINY = Path(__file__).parents[2] / "models" / "step-tiny"

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    "options",
    [
        RandomText(input_tokens=64, output_tokens=8),
        RandomText(input_tokens=300, output_tokens=16, seed=7),
        RandomText(input_tokens=64, output_tokens=32, input_range_ratio=0.5, output_range_ratio=0.25, seed=1),
        RandomText(input_tokens=40, output_tokens=8, prefix_tokens=30, seed=2),
    ],
)
def test_same_seed_gives_vllms_own_prompts(options: RandomText) -> None:
    from vllm.benchmarks.datasets import RandomDataset
    from vllm.tokenizers import get_tokenizer

    theirs = RandomDataset(random_seed=options.seed).sample(
        tokenizer=get_tokenizer(str(STEP_TINY)),
        num_requests=12,
        prefix_len=options.prefix_tokens,
        range_ratio={"input": options.input_range_ratio, "output": options.output_range_ratio},
        input_len=options.input_tokens,
        output_len=options.output_tokens,
    )
    ours = options.sample(12, load_tokenizer(str(STEP_TINY)))
    assert [(prompt.text, prompt.prompt_tokens, prompt.output_tokens) for prompt in ours] == [
        (request.prompt, request.prompt_len, request.expected_output_len) for request in theirs
    ]
