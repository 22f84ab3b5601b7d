"""Fits the first token of answers that must match a JSON schema, after training.

The model ends its thoughts with `</think>` and a line break. With `response_format`, the engine's grammar starts right
after `</think>` and forbids the line break. The model then writes its second choice, which no sample trains: mostly a
single brace, followed by blanks. Therefore the output row of `{"` is changed by ridge regression over training samples.
After `</think>`, its logit becomes the mean of the line break's and the next highest; elsewhere it stays as it is.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from models.training.batches import TASK_WEIGHTS, group_by_length, make_batch
from models.training.encoding import Encoder
from models.training.model.architecture import StepModel
from models.training.tasks import curriculum
from models.training.tokenizer import LINE, token_id

OBJECT_START, THINK_END = '{"', "</think>"
SAMPLES = 40
THINK_END_WEIGHT = 3.0
"""Weight of a state after `</think>`. There are seventy times as many others."""
RIDGE = 1.0
BATCH_TOKENS = 8_192


@torch.no_grad()
def fit_object_start(model: StepModel, encoder: Encoder, samples: int = SAMPLES) -> None:
    """Change the output row of `{"` in place, fitted to so many samples of each kind of task."""
    line, brace = (token_id(encoder.tokenizer, token) for token in (LINE, OBJECT_START))
    at_end, elsewhere = (torch.cat(states) for states in zip(*_states(model, encoder, samples), strict=True))
    logits = at_end @ model.lm_head.weight.T
    others = logits.clone()
    others[:, [line, brace]] = -torch.inf
    changes_at_end = (logits[:, line] + others.amax(1)) / 2 - logits[:, brace]
    states = torch.cat([at_end * THINK_END_WEIGHT, elsewhere])
    changes = torch.cat([changes_at_end * THINK_END_WEIGHT, torch.zeros(len(elsewhere))])
    square = states.T @ states + RIDGE * torch.eye(states.shape[1])
    model.lm_head.weight[brace] += torch.linalg.solve(square, states.T @ changes)


def _states(model: StepModel, encoder: Encoder, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normed states [positions, hidden] at `</think>`, and at all other positions that predict a target."""
    end = token_id(encoder.tokenizer, THINK_END)
    model.eval()
    for kind in TASK_WEIGHTS:
        rows = [encoder.row(curriculum.draw(kind, i, held_out=False)) for i in range(samples)]
        for group in group_by_length(rows, BATCH_TOKENS):
            batch = make_batch(group, None)
            inputs, indices = batch.inputs, batch.source_indices
            states = model.trunk(model.embed(inputs), model.rotary_tables(inputs), indices)
            normed, is_end = model.model.norm(states), inputs.ids.flatten()[indices] == end
            yield normed[is_end], normed[~is_end]
    model.train()
