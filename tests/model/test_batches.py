"""Batches hold every sample once, mark what the model should predict, and are split between ranks without overlap."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from models.training import batches
from models.training.batches import group_by_length, make_batch, random_copy_batch, training_chunk
from models.training.dist_rank import DistRank
from models.training.encoding import IMAGE_TOKENS, Encoder, Row, completion
from models.training.model.architecture import StepModel
from models.training.tasks import curriculum


def rows_of(*lengths: int) -> list[Row]:
    sample = curriculum.draw("sum", 0, held_out=False)
    return [Row(sample, list(range(100, 100 + length)), 2) for length in lengths]


def test_a_row_is_the_prompt_and_then_the_completion(encoder: Encoder) -> None:
    sample = curriculum.draw("tool", 5, held_out=True)
    row = encoder.row(sample)
    decode = encoder.tokenizer.decode
    assert decode(row.ids[: row.completion_start], skip_special_tokens=False) == encoder.renderer.prompt(sample)
    assert decode(row.ids[row.completion_start :], skip_special_tokens=False) == completion(sample)


def test_an_image_takes_as_many_tokens_as_in_an_engine(encoder: Encoder) -> None:
    row = encoder.row(curriculum.draw("image", 0, held_out=True))
    first = row.ids.index(encoder.image)
    assert row.ids[first : first + IMAGE_TOKENS] == [encoder.image] * IMAGE_TOKENS
    assert row.ids.count(encoder.image) == IMAGE_TOKENS
    frame = [encoder.tokenizer.id_to_token(row.ids[i]) for i in (first - 1, first + IMAGE_TOKENS)]
    assert frame == ["<im_start>", "<im_end>"]


def test_a_word_of_several_tokens_is_refused(encoder: Encoder) -> None:
    assert encoder.tokenizer.id_to_token(encoder.word_token("circle")).endswith("circle")
    with pytest.raises(ValueError, match="too many values"):
        encoder.word_token("Antananarivo")


def test_targets_are_the_completion_and_are_predicted_from_one_position_before() -> None:
    batch = make_batch(rows_of(3, 6), None)
    assert batch.inputs.ids.tolist() == [[100, 101, 102, 0, 0, 0], [100, 101, 102, 103, 104, 105]]
    assert batch.target_mask.int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert batch.source_indices.tolist() == [1, 7, 8, 9, 10]
    assert batch.inputs.images is None
    assert batch.inputs.positions[1].tolist() == list(range(6))


def test_stretched_positions_start_at_zero_and_only_grow() -> None:
    (row,) = rows_of(50)
    drawn = [batches.stretched_positions(row, Random(seed)) for seed in range(200)]
    stretched = [positions for positions in drawn if positions != list(range(50))]
    assert len(stretched) / 200 == pytest.approx(batches.STRETCHED_SHARE, abs=0.1)
    for positions in drawn:
        assert all(b > a for a, b in pairwise(positions))
        assert positions[-1] < 262_144
    assert max(positions[-1] for positions in stretched) > 10_000


def test_groups_hold_each_row_once_within_the_limit() -> None:
    rows = rows_of(*(Random(0).choices(range(3, 90), k=70)), 500)
    groups = group_by_length(rows, 400)
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(row.ids) for row in group) <= 400
    assert len(groups) < 20


def test_a_chunk_has_every_short_row_once_and_the_next_chunk_others(encoder: Encoder) -> None:
    chunks = [list(training_chunk(number, encoder, 4_096, DistRank(), size=40)) for number in (12, 13)]
    requests = [[s.task.request for batch in chunk for s in batch.samples] for chunk in chunks]
    assert 36 <= len(requests[0]) <= 40
    assert len(set(requests[0]) & set(requests[1])) <= 2  # "Hello!" is drawn now and then
    assert all(batch.inputs.ids.numel() <= 4_096 for chunk in chunks for batch in chunk)
    again = list(training_chunk(12, encoder, 4_096, DistRank(), size=40))
    assert all(torch.equal(a.inputs.ids, b.inputs.ids) for a, b in zip(chunks[0], again, strict=True))


def test_the_first_chunks_have_no_context(encoder: Encoder) -> None:
    first = [s for batch in training_chunk(0, encoder, 4_096, DistRank(), size=40) for s in batch.samples]
    later = [s for batch in training_chunk(12, encoder, 4_096, DistRank(), size=40) for s in batch.samples]
    assert all(m["role"] != "system" for s in first for m in s.messages)
    assert any(m["role"] == "system" for s in later for m in s.messages)


def test_tasks_are_drawn_by_their_weights(encoder: Encoder) -> None:
    kinds = [s.task.kind for batch in training_chunk(0, encoder, 4_096, DistRank(), size=200) for s in batch.samples]
    total = sum(batches.TASK_WEIGHTS.values())
    for kind in ("tool", "copy", "json"):
        assert kinds.count(kind) / len(kinds) == pytest.approx(batches.TASK_WEIGHTS[kind] / total, abs=0.1)


def test_long_counts_are_long_and_of_the_training_split() -> None:
    for seed in range(5):
        answer = batches.long_count(Random(seed)).task.answer
        assert len(answer) > batches.LONG_COUNT_CHARS


def test_random_rows_repeat_their_tokens_and_only_the_repetition_is_predicted() -> None:
    batch = random_copy_batch(3, DistRank(), 1_024, 500)
    length = int(batch.target_mask.sum(1)[0]) + 1
    for ids, mask in zip(batch.inputs.ids, batch.target_mask, strict=True):
        end = int(mask.nonzero()[-1]) + 1
        copied = ids[end - length : end].tolist()
        text = ids[: end - length].tolist()
        assert copied in [text[i : i + length] for i in range(len(text) - length + 1)]
        assert int(mask.sum()) == length - 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_random_rows_without_overlap(world_size: int) -> None:
    def real_rows(rank: DistRank) -> list[list[int]]:
        batch = random_copy_batch(7, rank, 2_048, 500)
        ends = [int(mask.nonzero()[-1]) + 1 for mask in batch.target_mask]
        return [ids[:end].tolist() for ids, end in zip(batch.inputs.ids, ends, strict=True)]

    of_ranks = [real_rows(DistRank(rank, world_size)) for rank in range(world_size)]
    whole = real_rows(DistRank())
    assert [of_ranks[i % world_size][i // world_size] for i in range(len(whole))] == whole
    assert sum(map(len, of_ranks)) == len(whole)


def test_evaluation_has_the_asked_number_of_held_out_samples_of_each_task(
    shipped: tuple[StepModel, Tokenizer], encoder: Encoder
) -> None:
    held_out = batches.eval_batches(encoder, 2, 4_096, first=9)
    samples = [sample for batch in held_out for sample in batch.samples]
    wanted = [curriculum.draw(kind, i, held_out=True) for kind in batches.TASK_WEIGHTS for i in (9, 10)]
    assert sorted(map(repr, samples)) == sorted(map(repr, wanted))
    assert all(int(batch.inputs.ids.max()) < shipped[0].dims.vocab for batch in held_out)
