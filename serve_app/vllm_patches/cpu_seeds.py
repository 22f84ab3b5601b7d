"""Lets a seeded request have a prompt that is read in several steps on a CPU.

vLLM samples a token for every prompt under way, and throws those away whose prompt has not been read to its end. So
that a seed gives the same tokens however the prompt was cut, it then winds the request's generator back. Only a GPU's
can be wound back: on a CPU the step fails with "CPU Generator does not use offset", and the engine ends. Here the
generator's state is kept before such a token is sampled, and put back after it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

import numpy as np

from serve_app.vllm_patches.patching import Function, Target

SAMPLE: Final = Target(
    "vllm.v1.worker.gpu_model_runner",
    "GPUModelRunner",
    "_sample",
    ("logits", "spec_decode_metadata"),
)
BOOKKEEPING: Final = Target(
    "vllm.v1.worker.gpu_model_runner",
    "GPUModelRunner",
    "_bookkeeping_sync",
    ("scheduler_output", "sampler_output", "logits", "hidden_states", "num_scheduled_tokens"),
)


def rewind_generators(original: Function, _: ModuleType) -> Function:
    """Tokens that are thrown away leave their requests' generators as they were."""

    def _sample(self: Any, *args: Any, **named: Any) -> Any:
        rewound = {generator: generator.get_state() for generator in discarded_generators(self).values()}
        sampled = original(self, *args, **named)
        for generator, state in rewound.items():
            generator.set_state(state)
        return sampled

    return _sample


def keep_from_winding_back(original: Function, _: ModuleType) -> Function:
    """vLLM's own winding back finds no generator to wind."""

    def _bookkeeping_sync(self: Any, *args: Any, **named: Any) -> Any:
        discarded = discarded_generators(self)
        if not discarded:
            return original(self, *args, **named)
        every = self.input_batch.generators
        self.input_batch.generators = {row: one for row, one in every.items() if row not in discarded}
        try:
            return original(self, *args, **named)
        finally:
            self.input_batch.generators = every

    return _bookkeeping_sync


def discarded_generators(runner: Any) -> dict[int, Any]:
    """By row of the batch: the generators of seeded requests whose next token is thrown away."""
    generators = runner.input_batch.generators
    if not generators:
        return {}
    discarded = np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]
    return {int(row): generators[int(row)] for row in discarded if int(row) in generators}
