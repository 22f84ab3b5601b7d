"""How fast the engine core that computes nothing gives tokens, and which ones."""

from __future__ import annotations

from typing import Final

WORKER: Final = "bench.front_end.worker.PacedWorker"
"""vLLM's `--worker-cls`. A name, because importing it imports vLLM."""

STEPS_PER_S: Final = "steps_per_s"
THINK_END: Final = "think_end"
"""Keys of `--additional-config`."""

TOKENS_OF_A_STEP: Final = (2, 3)
"""In turn: two to three tokens for each step, as MTP with three drafts gives."""
FIRST_WORD, WORDS = 300, 30_000
"""Ids of the tokenizer's most frequent words; lower ones are single bytes, which are no whole characters."""
REASONING_STEPS: Final = 20
"""Steps after which the reasoning ends."""


def tokens_per_request(steps: int) -> int:
    """How many tokens so many steps give."""
    return sum(TOKENS_OF_A_STEP[step % len(TOKENS_OF_A_STEP)] for step in range(steps))
