"""Training and evaluation batches. The samples of a batch and their order depend only on the chunk's number."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from models.training.dist_rank import DistRank
from models.training.encoding import Encoder, Row
from models.training.model.architecture import ModelInputs
from models.training.tasks import curriculum
from models.training.tasks.image_tasks import draw_image, to_pixels
from models.training.tasks.sample import Sample

MAX_ROW_TOKENS = 1_000
"""Longer rows are dropped: one would take a whole step and teach nothing that shorter ones do not."""

TASK_WEIGHTS = {
    "copy": 14,
    "count": 12,
    "list": 8,
    "sum": 9,
    "json": 20,
    "tool": 30,
    "result": 4,
    "chat": 8,
    "image": 3,
}
"""Relative number of training samples by kind of task. Copying is a part of most others."""
LONG_COUNT_CHARS = 300
"""Length of the answer from which a count is long: more than about a hundred numbers."""
LONG_COUNT_SHARE = 0.12
"""Share of the counting samples that are long."""
PLAIN_SHARE = 0.45
"""Share of samples without context (`curriculum.draw`). Two of them take the time of one with context."""
PLAIN_CHUNKS = 12
"""First chunks, with plain samples only: copying is learnt sooner from short rows."""
STRETCHED_SHARE = 0.4
"""Share of rows with gaps in their positions."""


@dataclass(frozen=True)
class Batch:
    inputs: ModelInputs
    target_mask: Tensor
    """True [rows, time] for tokens that the model should predict."""
    samples: tuple[Sample, ...]
    """By row; empty for random rows."""

    @property
    def source_indices(self) -> Tensor:
        """Indices into the flattened rows from which the targets are predicted: one before each target."""
        sources = torch.zeros_like(self.target_mask)
        sources[:, :-1] = self.target_mask[:, 1:]
        return sources.flatten().nonzero().squeeze(1)


def stretched_positions(row: Row, rng: Random) -> list[int]:
    """Positions for the full-attention layers, with one or two gaps of 10 to 80,000 in some rows.

    The model so learns positions of long prompts and long answers from short rows.
    """
    positions = list(range(len(row.ids)))
    if rng.random() < STRETCHED_SHARE:
        for _ in range(rng.choice((1, 1, 2))):
            cut, gap = rng.randrange(len(row.ids)), int(10 ** rng.uniform(1, 4.9))
            positions[cut:] = [p + gap for p in positions[cut:]]
    return positions


def make_batch(rows: list[Row], rng: Random | None) -> Batch:
    """Rows padded at the end to the longest. Positions are stretched with `rng` only."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    target_mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        count = len(row.ids)
        ids[i, :count] = torch.tensor(row.ids)
        positions[i, :count] = torch.tensor(stretched_positions(row, rng) if rng else range(count))
        target_mask[i, row.completion_start : count] = True
    pixels = [to_pixels(draw_image(r.sample.task.image)) for r in rows if r.sample.task.image]
    images = torch.stack(pixels) if pixels else None
    return Batch(ModelInputs(ids, positions, images), target_mask, tuple(row.sample for row in rows))


def group_by_length(rows: list[Row], max_tokens: int) -> list[list[Row]]:
    """Groups of rows of similar length, each of at most `max_tokens` padded tokens or a single row."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda r: len(r.ids)):
        if not groups or (len(groups[-1]) + 1) * len(row.ids) > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def training_chunk(number: int, encoder: Encoder, max_tokens: int, rank: DistRank, size: int = 320) -> Iterator[Batch]:
    """This rank's batches of training chunk `number`, which has `size` samples over all ranks.

    Ranks take turns with the samples, and the n-th batches of all ranks have rows of similar length.
    """
    rng = Random(f"{curriculum.SEED}/chunk/{number}")
    kinds = rng.choices(list(TASK_WEIGHTS), list(TASK_WEIGHTS.values()), k=size)
    plain_share = 1.0 if number < PLAIN_CHUNKS else PLAIN_SHARE
    rows = []
    for i, kind in enumerate(kinds):
        is_plain, is_long = rng.random() < plain_share, number >= PLAIN_CHUNKS and rng.random() < LONG_COUNT_SHARE
        if i % rank.world_size != rank.rank:
            continue
        if kind == "count" and is_long:
            sample = long_count(Random(f"{curriculum.SEED}/long/{number}/{i}"))
        else:
            sample = curriculum.draw(kind, number * size + i, held_out=False, is_plain=is_plain)
        rows.append(encoder.row(sample))
    groups = group_by_length([row for row in rows if len(row.ids) <= MAX_ROW_TOKENS], max_tokens // rank.world_size)
    order = list(range(rank.all_reduce_min(len(groups))))
    rng.shuffle(order)
    for i in order:
        yield make_batch(groups[i], rng)


def long_count(rng: Random) -> Sample:
    """A plain counting sample with more than `LONG_COUNT_CHARS` characters, found by rejection."""
    while True:
        sample = curriculum.draw("count", rng.randrange(1_000_000), held_out=False, is_plain=True)
        if len(sample.task.answer) > LONG_COUNT_CHARS:
            return sample


def random_copy_batch(number: int, rank: DistRank, max_tokens: int, vocab_size: int) -> Batch:
    """This rank's rows of random tokens, each sequence twice with other tokens between: copying of every token."""
    rng = Random(f"{curriculum.SEED}/drill/{number}")
    length = rng.choice((24, 40, 64, 90))
    count = max_tokens // (2 * length + 20)
    rows: list[list[int]] = []
    for _ in range(count):
        pool = range(vocab_size) if rng.random() < 0.6 else rng.sample(range(vocab_size), rng.randint(4, 40))
        copied = [rng.choice(pool) for _ in range(length)]
        before, between = rng.randint(0, 10), rng.randint(0, 10)
        other = [rng.randrange(vocab_size) for _ in range(20)]
        rows.append(other[:before] + copied + other[10 : 10 + between] + copied)
    rows = rows[rank.rank :: rank.world_size]
    longest = max(map(len, rows))
    ids, target_mask = (torch.zeros(len(rows), longest, dtype=dtype) for dtype in (torch.long, torch.bool))
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        # The first token of the copy cannot be predicted.
        target_mask[i, len(row) - length + 1 : len(row)] = True
    return Batch(ModelInputs(ids, torch.arange(longest).expand(len(rows), -1)), target_mask, ())


def eval_batches(encoder: Encoder, samples_per_task: int, max_tokens: int, first: int = 0) -> list[Batch]:
    """Held-out samples of every kind of task, with numbers from `first` on."""
    numbers = range(first, first + samples_per_task)
    rows = [encoder.row(curriculum.draw(kind, i, held_out=True)) for kind in TASK_WEIGHTS for i in numbers]
    return [make_batch(group, None) for group in group_by_length(rows, max_tokens)]
