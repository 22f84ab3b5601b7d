"""Turns samples into token rows. Which samples come in which order is a function of the chunk's number alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.training.dist_rank import Share
from models.training.encoding import Renderer, completion
from models.training.model.architecture import Rows
from models.training.tasks import curriculum
from models.training.tasks import images as pictures
from models.training.tasks.sample import Sample
from models.training.tokenizer import token_id

IMAGE = "<im_patch>"
IMAGE_TOKENS = 169
LONGEST = 1_000
"""Rows beyond this are left out: they would cost a whole step and teach what shorter ones teach."""

WEIGHTS = {"copy": 14, "count": 12, "list": 8, "sum": 9, "json": 20, "tool": 30, "result": 4, "chat": 8, "image": 3}
"""Share of each skill. Copying pays for most of the others."""
LONG_COUNT = 300
"""Characters of a count beyond a hundred."""
LONG_COUNTS = 0.12
"""Share of the counts that are so long."""
PLAIN = 0.45
"""Share of the samples without system prompts, tools in passing and earlier turns: two in the time of one."""
FIRST_PLAIN = 12
"""Chunks at the start that hold nothing else: copying is learnt sooner on short rows."""


@dataclass(frozen=True)
class Row:
    """One sample as ids. Everything from `start` on is the model's to say."""

    sample: Sample
    ids: list[int]
    start: int


@dataclass(frozen=True)
class Batch:
    rows: Rows
    wanted: Tensor
    """Mask [rows, time] of the tokens that the model should have said."""
    samples: tuple[Sample, ...]

    @property
    def places(self) -> Tensor:
        """Where each wanted token is said from: the place before it, as indices of the flattened rows."""
        says = torch.zeros_like(self.wanted)
        says[:, :-1] = self.wanted[:, 1:]
        return says.flatten().nonzero().squeeze(1)


class Encoder:
    def __init__(self, tokenizer: Tokenizer, renderer: Renderer) -> None:
        self.tokenizer, self.renderer = tokenizer, renderer
        self.image = token_id(tokenizer, IMAGE)
        self.frame = [token_id(tokenizer, t) for t in ("<im_start>", "<im_end>")]

    def row(self, sample: Sample) -> Row:
        prompt = self._with_images(self.tokenizer.encode(self.renderer.prompt(sample), add_special_tokens=False).ids)
        said = self.tokenizer.encode(completion(sample), add_special_tokens=False).ids
        return Row(sample, prompt + said, len(prompt))

    def word_token(self, word: str) -> int:
        """The one token of a word that stands behind another one. Raises `ValueError` for what takes several."""
        _, token = self.tokenizer.encode(f"a {word}", add_special_tokens=False).ids
        return token

    def _with_images(self, ids: list[int]) -> list[int]:
        """Each image marker becomes as many as the server makes of it, framed."""
        opened, closed = self.frame
        full: list[int] = []
        for i in ids:
            full += [opened, *[self.image] * IMAGE_TOKENS, closed] if i == self.image else [i]
        return full


def far_positions(row: Row, rng: Random) -> list[int]:
    """Positions for the full layers. Now and then a row is pulled apart, as if much text lay between its parts: long
    prompts, and the end of a long answer, are met that way without paying for them."""
    positions = list(range(len(row.ids)))
    if rng.random() < 0.4:
        for _ in range(rng.choice((1, 1, 2))):
            cut, gap = rng.randrange(len(row.ids)), int(10 ** rng.uniform(1, 4.9))
            positions[cut:] = [p + gap for p in positions[cut:]]
    return positions


def batch(rows: list[Row], rng: Random | None) -> Batch:
    """Pad at the end. Without a generator positions stay plain."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    far = torch.zeros(len(rows), longest, dtype=torch.long)
    wanted = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        count = len(row.ids)
        ids[i, :count] = torch.tensor(row.ids)
        far[i, :count] = torch.tensor(far_positions(row, rng) if rng else range(count))
        wanted[i, row.start : count] = True
    drawn = [pictures.pixels(pictures.draw(r.sample.lesson.picture)) for r in rows if r.sample.lesson.picture]
    images = torch.stack(drawn) if drawn else None
    return Batch(Rows(ids, far, images), wanted, tuple(row.sample for row in rows))


def split(rows: list[Row], budget: int) -> list[list[Row]]:
    """Rows of like length together, each group within the budget of padded tokens."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda r: len(r.ids)):
        if not groups or (len(groups[-1]) + 1) * len(row.ids) > budget:
            groups.append([])
        groups[-1].append(row)
    return groups


def chunk(number: int, encoder: Encoder, budget: int, share: Share, size: int = 320) -> Iterator[Batch]:
    """This worker's part of training chunk `number`: every so many samples, in batches that are about as long as the
    other workers' at the same time."""
    rng = Random(f"{curriculum.SEED}/chunk/{number}")
    skills = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=size)
    plain = 1.0 if number < FIRST_PLAIN else PLAIN
    rows = []
    for i, skill in enumerate(skills):
        is_plain, is_long = rng.random() < plain, number >= FIRST_PLAIN and rng.random() < LONG_COUNTS
        if i % share.workers != share.rank:
            continue
        if skill == "count" and is_long:
            sample = long_count(Random(f"{curriculum.SEED}/long/{number}/{i}"))
        else:
            sample = curriculum.draw(skill, number * size + i, held_out=False, is_plain=is_plain)
        rows.append(encoder.row(sample))
    groups = split([row for row in rows if len(row.ids) <= LONGEST], budget // share.workers)
    order = list(range(share.least(len(groups))))
    rng.shuffle(order)
    for place in order:
        yield batch(groups[place], rng)


def long_count(rng: Random) -> Sample:
    """A long counting lesson, found by drawing."""
    while True:
        sample = curriculum.draw("count", rng.randrange(1_000_000), held_out=False, is_plain=True)
        if len(sample.lesson.answer) > LONG_COUNT:
            return sample


def drill(number: int, share: Share, budget: int, vocabulary: int) -> Batch:
    """Rows of random tokens said twice, with something between: nothing but copying, of every token there is."""
    rng = Random(f"{curriculum.SEED}/drill/{number}")
    length = rng.choice((24, 40, 64, 90))
    count = budget // (2 * length + 20)
    made: list[tuple[list[int], int]] = []
    for _ in range(count):
        pool = range(vocabulary) if rng.random() < 0.6 else rng.sample(range(vocabulary), rng.randint(4, 40))
        said = [rng.choice(pool) for _ in range(length)]
        before, between = rng.randint(0, 10), rng.randint(0, 10)
        other = [rng.randrange(vocabulary) for _ in range(20)]
        made.append((other[:before] + said + other[10 : 10 + between] + said, len(said) - 1))
    made = made[share.rank :: share.workers]
    longest = max(len(ids) for ids, _ in made)
    ids, wanted = torch.zeros(len(made), longest, dtype=torch.long), torch.zeros(len(made), longest, dtype=torch.bool)
    for i, (row, tail) in enumerate(made):
        ids[i, : len(row)] = torch.tensor(row)
        wanted[i, len(row) - tail : len(row)] = True
    return Batch(Rows(ids, torch.arange(longest).expand(len(made), -1)), wanted, ())


def exam(encoder: Encoder, each: int, budget: int, first: int = 0) -> list[Batch]:
    """The held-out set: `each` samples of every skill."""
    rows = [encoder.row(curriculum.draw(skill, first + i, held_out=True)) for skill in WEIGHTS for i in range(each)]
    return [batch(group, None) for group in split(rows, budget)]
