"""What training minimises and what it watches: the next token, and by each drafting layer one token further.

A drafting layer gets what the engine's proposer gives it: layer 0 the trunk's un-normed state and the embedding of the
next token, layer 1 the state of layer 0 and the embedding of the token after that, and so on. Only layer 0 attends. The
engine's proposer runs the later layers at one position a step, so most of their cache was never written: their
attention's output matrix is held at zero, and what lies in that cache cannot matter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training.batches import Batch
from models.training.model.architecture import Step
from models.training.model.attention import Rotation

DRAFT_WEIGHT = 0.3
"""Of each drafting layer's loss."""
DRAFT_REACH = 0.03
"""And so much of its gradient goes on into the trunk, for what is to come should be seen in the state. Not more: the
drafts' losses are a hundred times the trunk's when they begin, and Muon would make every step of the trunk theirs."""


@dataclass(frozen=True)
class Heads:
    """Logits where something is wanted, from the trunk and from each drafting layer, with their answers.

    `places` index the flattened batch. A drafting layer lacks the last places, where there is no token so far ahead.
    """

    logits: list[Tensor]
    answers: list[Tensor]
    places: list[Tensor]


def hold_spelling(model: Step, pieces: Tensor) -> None:
    """Every token keeps the random vector it was given, and the heads keep theirs for `pieces` of words (ids).

    Copying must treat all of them alike. A piece that no lesson happens to use is pushed out of a head that learns, and
    moves away from where the copying looks for it. What digits and marks are as answers is learnt, not what they are as
    input: counting would line the digits up, and a look that falls on an 8 and a little on a 4 would then see a 7.
    """
    model.model.embed_tokens.weight.requires_grad_(False)
    free = torch.ones(model.shape.vocab, 1)
    free[pieces] = 0.0
    for head in model.heads():
        head.weight.register_hook(lambda gradient: gradient * free)


def silence_later_drafts(model: Step) -> None:
    """Hold the attention of all drafting layers but the first at zero."""
    for layer in model.drafts()[1:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        for p in [*layer.self_attn.parameters(), *layer.input_layernorm.parameters()]:
            p.requires_grad_(False)


def run(model: Step, batch: Batch, *, drafts: bool) -> Heads:
    """One forward pass over a batch."""
    rows, wanted = batch.rows, batch.wanted
    time, flat = rows.ids.shape[1], rows.ids.flatten()
    tables = model.tables(rows)
    embedded = model.embed(rows)
    place = batch.places
    if not drafts:
        state = model.trunk(embedded, tables, place)
        return Heads([model.logits(state)], [flat[place + 1]], [place])
    state = model.trunk(embedded, tables)
    logits, answers, places = [model.logits(state.flatten(0, 1)[place])], [flat[place + 1]], [place]
    state, embedded = (torch.lerp(t.detach(), t, DRAFT_REACH) for t in (state, embedded))
    z = x = _first_draft(model, embedded, state, tables[0]).flatten(0, 1)
    ends, tokens = wanted.flatten(), embedded.flatten(0, 1)
    for k, layer in enumerate(model.drafts()):
        fits = (place % time + k + 2 < time) & ends[(place + k + 2).clamp(max=len(ends) - 1)]
        place = place[fits]
        z = layer.feed(x[place] if k == 0 else layer.join(tokens[place + k + 1], z[fits]))
        logits.append(layer.shared_head(z))
        answers.append(flat[place + k + 2])
        places.append(place)
    return Heads(logits, answers, places)


def _first_draft(model: Step, embedded: Tensor, state: Tensor, table: Rotation) -> Tensor:
    """The first drafting layer up to its attention, at every place: later places look back at earlier ones."""
    layer = model.drafts()[0]
    x = layer.join(torch.roll(embedded, -1, dims=1), state)
    return x + layer.self_attn(layer.input_layernorm(x), table)


def loss(heads: Heads) -> tuple[Tensor, list[float]]:
    """Weighted sum, and the loss of each head."""
    pairs = zip(heads.logits, heads.answers, strict=True)
    each = [nn.functional.cross_entropy(logits, answers) for logits, answers in pairs]
    return each[0] + DRAFT_WEIGHT * sum(each[1:], torch.zeros(())), [x.item() for x in each]


@dataclass
class Marks:
    """Held-out results. A sample is right when every token of its thought and its answer is."""

    right: dict[str, int]
    asked: dict[str, int]
    drafted: list[int]
    accepted: list[int]
    misses: list[tuple[str, int]]

    def score(self, skill: str) -> float:
        return self.right.get(skill, 0) / max(1, self.asked.get(skill, 0))

    def acceptance(self, position: int) -> float:
        """Share of drafts in which this position and all before it were right."""
        return self.accepted[position] / max(1, self.drafted[position])


@torch.no_grad()
def examine(model: Step, exam: list[Batch]) -> Marks:
    """Teacher-forced: as long as every argmax is the wanted token, it is what greedy decoding would have fed back."""
    model.eval()
    marks = Marks({}, {}, [0] * model.shape.mtp_layers, [0] * model.shape.mtp_layers, [])
    for batch in exam:
        heads = run(model, batch, drafts=True)
        time, total = batch.rows.ids.shape[1], batch.rows.ids.numel()
        hits = [g.argmax(-1) == a for g, a in zip(heads.logits, heads.answers, strict=True)]
        wrong = torch.zeros(total, dtype=torch.bool)
        wrong[heads.places[0]] = ~hits[0]
        for sample, row in zip(batch.samples, wrong.view(-1, time), strict=True):
            skill, is_right = sample.lesson.skill, not bool(row.any())
            marks.asked[skill] = marks.asked.get(skill, 0) + 1
            marks.right[skill] = marks.right.get(skill, 0) + is_right
        so_far = torch.ones(total, dtype=torch.bool)
        for k, (hit, place) in enumerate(zip(hits[1:], heads.places[1:], strict=True)):
            now = torch.zeros(total, dtype=torch.bool)
            now[place] = hit
            so_far &= now
            marks.drafted[k] += len(place)
            marks.accepted[k] += int(so_far.sum())
    model.train()
    return marks
