"""The first token of an answer that must fit a schema, solved for after training.

The model ends its thoughts with `</think>` and a line break. Where a client asks for a schema (`response_format`), the
engine's grammar starts right behind `</think>` and forbids the line break. What the model then says is its second
choice, which no lesson has taught: most objects began with a lone brace and ran on in blanks. So the head's row of `{"`
is moved until that token is the second choice behind `</think>`, half-way between the line break and what was second,
and as it was everywhere else: ridge regression on the states of lessons.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from models.training import batches
from models.training.batches import Encoder
from models.training.model.architecture import Step
from models.training.tasks import curriculum
from models.training.tokenizer import LINE, token_id

OBJECT, THOUGHT = '{"', "</think>"
LESSONS = 40
"""Of each skill."""
WEIGHT = 3.0
"""Of a state behind `</think>`, for there are seventy times as many others."""
RIDGE = 1.0


@torch.no_grad()
def teach(model: Step, encoder: Encoder) -> None:
    """Move the head's row of `{"`. Some hundred lessons' forward pass: seconds."""
    line, brace = (token_id(encoder.tokenizer, token) for token in (LINE, OBJECT))
    behind, elsewhere = (torch.cat(states) for states in zip(*_states(model, encoder), strict=True))
    logits = behind @ model.lm_head.weight.T
    others = logits.clone()
    others[:, [line, brace]] = -torch.inf
    wanted = (logits[:, line] + others.amax(1)) / 2 - logits[:, brace]
    states = torch.cat([behind * WEIGHT, elsewhere])
    moves = torch.cat([wanted * WEIGHT, torch.zeros(len(elsewhere))])
    square = states.T @ states + RIDGE * torch.eye(states.shape[1])
    model.lm_head.weight[brace] += torch.linalg.solve(square, states.T @ moves)


def _states(model: Step, encoder: Encoder) -> Iterator[tuple[Tensor, Tensor]]:
    """Normed states [places, hidden] behind `</think>` and at all other places from which the model says something."""
    end = token_id(encoder.tokenizer, THOUGHT)
    model.eval()
    for skill in batches.WEIGHTS:
        rows = [encoder.row(curriculum.draw(skill, i, held_out=False)) for i in range(LESSONS)]
        for group in batches.split(rows, 8_192):
            batch = batches.batch(group, None)
            states = model.trunk(model.embed(batch.rows), model.tables(batch.rows), batch.places)
            normed, is_end = model.model.norm(states), batch.rows.ids.flatten()[batch.places] == end
            yield normed[is_end], normed[~is_end]
    model.train()
