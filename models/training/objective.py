"""Loss and teacher-forced scores: the trunk predicts the next token, each MTP layer one token further ahead.

An MTP layer gets what vLLM's MTP proposer gives it: layer 0 the trunk's un-normed state and the embedding of the next
token, layer 1 the state of layer 0 and the embedding of the token after that, and so on. Only layer 0 attends. The
proposer runs the later layers at one position per step, so most of their KV cache is never written: their attention's
output matrix is held at zero, so that the content of the cache has no effect.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.training.batches import Batch
from models.training.model.architecture import StepModel
from models.training.model.attention import Rotation

MTP_LOSS_WEIGHT = 0.3
"""Weight of each MTP layer's loss."""
MTP_GRADIENT_SCALE = 0.03
"""Part of the MTP layers' gradient that reaches the trunk, so that its states hold something about later tokens. With
more, the MTP losses dominate Muon's updates of the trunk: they start a hundred times as high as the trunk's."""


@dataclass(frozen=True)
class HeadOutputs:
    """Predictions of the trunk's head and then of each MTP layer, as one list item each.

    An MTP layer has fewer: at the last positions of a row there is no token so far ahead.
    """

    logits: list[Tensor]
    """[predictions, vocab]"""
    targets: list[Tensor]
    """Token ids [predictions]."""
    indices: list[Tensor]
    """Where in the flattened batch each was predicted from [predictions]."""


def freeze_embeddings(model: StepModel, pieces: Tensor) -> None:
    """Freeze the input embeddings of all tokens, and the output rows of `pieces`, the tokens that spell words.

    Copying must work alike for all tokens. Training moves the output row of a token that no sample uses away from its
    embedding, where copying looks for it. Output rows of digits and punctuation are trained; their embeddings are not,
    because counting would align the digits' embeddings and attention to an 8 and a little to a 4 would read a 7.
    """
    model.model.embed_tokens.weight.requires_grad_(False)
    free = torch.ones(model.dims.vocab, 1)
    free[pieces] = 0.0
    for head in model.output_heads():
        head.weight.register_hook(lambda gradient: gradient * free)


def disable_later_mtp_attention(model: StepModel) -> None:
    """Set the attention output of all MTP layers but the first to zero, and freeze it."""
    for layer in model.mtp_layers()[1:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        for p in [*layer.self_attn.parameters(), *layer.input_layernorm.parameters()]:
            p.requires_grad_(False)


def predict(model: StepModel, batch: Batch, *, with_mtp: bool) -> HeadOutputs:
    """One forward pass over a batch, with logits for the targets only."""
    inputs = batch.inputs
    time, flat_ids = inputs.ids.shape[1], inputs.ids.flatten()
    tables = model.rotary_tables(inputs)
    embedded = model.embed(inputs)
    indices = batch.source_indices
    if not with_mtp:
        state = model.trunk(embedded, tables, indices)
        return HeadOutputs([model.logits(state)], [flat_ids[indices + 1]], [indices])
    state = model.trunk(embedded, tables)
    outputs = HeadOutputs([model.logits(state.flatten(0, 1)[indices])], [flat_ids[indices + 1]], [indices])
    state, embedded = (torch.lerp(t.detach(), t, MTP_GRADIENT_SCALE) for t in (state, embedded))
    z = x = _first_mtp_attention(model, embedded, state, tables[0]).flatten(0, 1)
    is_target, flat_embedded = batch.target_mask.flatten(), embedded.flatten(0, 1)
    for k, layer in enumerate(model.mtp_layers()):
        fits = (indices % time + k + 2 < time) & is_target[(indices + k + 2).clamp(max=len(is_target) - 1)]
        indices = indices[fits]
        z = layer.feed_forward(x[indices] if k == 0 else layer.join(flat_embedded[indices + k + 1], z[fits]))
        outputs.logits.append(layer.shared_head(z))
        outputs.targets.append(flat_ids[indices + k + 2])
        outputs.indices.append(indices)
    return outputs


def _first_mtp_attention(model: StepModel, embedded: Tensor, state: Tensor, table: Rotation) -> Tensor:
    """The first MTP layer up to its attention, at every position, because later ones attend to earlier ones."""
    layer = model.mtp_layers()[0]
    x = layer.join(torch.roll(embedded, -1, dims=1), state)
    return layer.attend(x, table)


def loss(outputs: HeadOutputs) -> tuple[Tensor, list[float]]:
    """The weighted sum of the cross entropies, and each of them: trunk first, then the MTP layers."""
    pairs = zip(outputs.logits, outputs.targets, strict=True)
    each = [nn.functional.cross_entropy(logits, targets) for logits, targets in pairs]
    return each[0] + MTP_LOSS_WEIGHT * sum(each[1:], torch.zeros(())), [x.item() for x in each]


@dataclass
class EvalScores:
    """Held-out results. A sample is right if every token of its completion is."""

    right: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)
    """Samples by kind of task."""
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    """By draft position."""

    def score(self, kind: str) -> float:
        return self.right.get(kind, 0) / max(1, self.total.get(kind, 0))

    def acceptance(self, position: int) -> float:
        """Share of drafts that are right at this position and at all before it."""
        return self.accepted[position] / max(1, self.drafted[position])


@torch.no_grad()
def score(model: StepModel, batches: list[Batch]) -> EvalScores:
    """Scores by teacher forcing. As long as every argmax is the target, greedy decoding gives the same tokens."""
    model.eval()
    scores = EvalScores({}, {}, [0] * model.dims.mtp_layers, [0] * model.dims.mtp_layers)
    for batch in batches:
        outputs = predict(model, batch, with_mtp=True)
        hits = [logits.argmax(-1) == t for logits, t in zip(outputs.logits, outputs.targets, strict=True)]
        _count_right_samples(scores, batch, outputs.indices[0][~hits[0]])
        _count_accepted_drafts(scores, batch.inputs.ids.numel(), hits[1:], outputs.indices[1:])
    model.train()
    return scores


def _count_right_samples(scores: EvalScores, batch: Batch, wrong_indices: Tensor) -> None:
    wrong_rows = set((wrong_indices // batch.inputs.ids.shape[1]).tolist())
    for i, sample in enumerate(batch.samples):
        kind = sample.task.kind
        scores.total[kind] = scores.total.get(kind, 0) + 1
        scores.right[kind] = scores.right.get(kind, 0) + (i not in wrong_rows)


def _count_accepted_drafts(scores: EvalScores, size: int, hits: list[Tensor], indices: list[Tensor]) -> None:
    """A draft token counts as accepted if it and all before it in the same draft are right."""
    is_accepted = torch.ones(size, dtype=torch.bool)
    for k, (hit, at) in enumerate(zip(hits, indices, strict=True)):
        is_right = torch.zeros(size, dtype=torch.bool)
        is_right[at] = hit
        is_accepted &= is_right
        scores.drafted[k] += len(at)
        scores.accepted[k] += int(is_accepted.sum())
