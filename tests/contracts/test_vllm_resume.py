"""An attempt that continues another one on real vLLM gives what the first would have given, whatever it asks for.

Each test runs a request undisturbed, then again from several places in its answer, and compares the rest.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from serve_app.protocol.messages import AttemptRequest
from tests.contracts.harness import (
    END_OF_THINKING,
    END_OF_TURN,
    LENGTH,
    MODEL,
    MTP_ARGV,
    START_TIMEOUT_S,
    STOP,
    THINK,
    Subject,
    start_vllm,
)

pytestmark = [
    pytest.mark.usefixtures("engine_environment"),
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(START_TIMEOUT_S),
]

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue"]},
            "sizes": {"type": "array", "minItems": 3, "maxItems": 3, "items": {"enum": [17, 23, 999]}},
        },
        "required": ["colour", "sizes"],
        "additionalProperties": False,
    }
)

ARGV = [
    *MTP_ARGV,
    *("--reasoning-parser", "step3p5"),
    # A model with random weights would fill its answer with blanks.
    *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
    # Smaller than what is resumed: a continuation is prefilled in pieces.
    *("--max-num-batched-tokens", "96"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def subject() -> AsyncIterator[Subject]:
    started = await start_vllm(*ARGV)
    yield started
    await started.engine.shutdown()


async def expect_continuations(subject: Subject, cuts: tuple[int, ...], **request: Any) -> list[int]:
    """Run a request undisturbed and from each of `cuts` on; its tokens."""
    whole = subject.attempt(**request)
    undisturbed = await subject.run(whole)
    for cut in cuts:
        rest = subject.attempt(**request, emitted=undisturbed[:cut])
        assert await subject.run(rest) == undisturbed[cut:], f"continued after {cut} tokens"
        assert subject.last(rest).finish_reason == subject.last(whole).finish_reason
        assert subject.last(rest).stop_reason == subject.last(whole).stop_reason
    return undisturbed


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 2.0, "frequency_penalty": 0.5}, {"frequency_penalty": 0.9}, {"repetition_penalty": 5.0}],
)
async def test_penalties_count_what_was_emitted_before(subject: Subject, penalty: dict[str, float]) -> None:
    # Two tokens in turn: the answer goes on with them, until what was said of each weighs more than the copying.
    request = {"prompt": [40, 41] * 20, "max_tokens": 40}
    tokens = await expect_continuations(subject, (1, 13, 30), **request, **penalty)
    plain = await subject.run(subject.attempt(**request))
    assert tokens != plain, "the penalty changes this answer, or the test shows nothing"


async def test_limits_count_from_the_first_attempt(subject: Subject) -> None:
    plain = await subject.run(subject.attempt(max_tokens=40))
    stop = plain[4]
    tokens = await expect_continuations(subject, (2, 6, 11), max_tokens=40, min_tokens=12, stop_token_ids=[stop])
    assert len(tokens) >= 12
    assert stop not in tokens[:11]


async def test_a_continuation_longer_than_a_prefill_step_and_found_in_the_prefix_cache(subject: Subject) -> None:
    request = {"prompt": [30 + i % 50 for i in range(60)], "max_tokens": 215}
    undisturbed = await subject.run(subject.attempt(**request))
    for _ in range(2):  # the second time more than the prompt comes from the cache
        rest = subject.attempt(**request, emitted=undisturbed[:205])
        assert await subject.run(rest) == undisturbed[205:]
        assert subject.last(rest).finish_reason == LENGTH


async def test_every_piece_of_a_prefill_is_a_step_though_it_gives_no_token(subject: Subject) -> None:
    before = subject.engine.stats().steps
    await subject.run(subject.attempt(prompt=[20 + i % 61 for i in range(400)], max_tokens=1))
    assert subject.engine.stats().steps - before >= 400 // 96  # what hang detection goes by


async def test_log_probabilities_go_on(subject: Subject) -> None:
    request = {"max_tokens": 20, "logprobs": 2}
    whole = subject.attempt(**request)
    undisturbed = await subject.run(whole)
    rest = subject.attempt(**request, emitted=undisturbed[:8])
    assert await subject.run(rest) == undisturbed[8:]
    assert logprobs_of(subject, rest) == pytest.approx(logprobs_of(subject, whole)[8:], abs=0.02)


def logprobs_of(subject: Subject, attempt: AttemptRequest) -> list[float]:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.serial_utils import MsgpackDecoder

    values = []
    for delta in subject.sink.deltas[attempt.attempt_id]:
        assert delta.extra is not None
        output = MsgpackDecoder(EngineCoreOutput).decode([bytearray(buffer) for buffer in delta.extra])
        assert output.new_token_ids == delta.token_ids
        values += output.new_logprobs.logprobs[:, 0].tolist()
    return values


async def test_a_grammar_goes_on_in_the_middle_of_its_sentence(subject: Subject) -> None:
    tokens = await expect_continuations(
        subject, (1, 5, 12, 20), max_tokens=80, json_schema=SCHEMA, reasoning_ended=True
    )
    assert len(tokens) > 20
    assert_fits_schema(tokens)


async def test_the_end_of_the_reasoning_is_noticed_in_what_was_emitted(subject: Subject) -> None:
    """The grammar binds from the end of the reasoning on, wherever the attempts meet."""
    request = {"prompt": [20, 21, THINK], "max_tokens": 80, "json_schema": SCHEMA, "reasoning_ended": False}
    thought = [40, 41, 42, END_OF_THINKING]
    first = subject.attempt(**request, emitted=thought)
    answer = await subject.run(first)
    assert subject.last(first).finish_reason == STOP
    assert_fits_schema(answer)
    for cut in (1, 9):
        rest = subject.attempt(**request, emitted=thought + answer[:cut])
        assert await subject.run(rest) == answer[cut:]

    still_thinking = subject.attempt(**(request | {"max_tokens": 10}), emitted=thought[:2])
    plain = subject.attempt(prompt=[20, 21, THINK], max_tokens=10, emitted=thought[:2])
    assert await subject.run(still_thinking) == await subject.run(plain), "no grammar binds while it reasons"


def assert_fits_schema(tokens: list[int]) -> None:
    from transformers import AutoTokenizer

    assert tokens[-1] == END_OF_TURN
    answer = json.loads(AutoTokenizer.from_pretrained(MODEL).decode(tokens[:-1]))
    assert set(answer) == {"colour", "sizes"}
    assert len(answer["sizes"]) == 3


THINKS = {"prompt": [20, 21, THINK], "max_tokens": 60}
"""The answer to this is thought for longer than the budgets below, if nothing ends it."""


@pytest.mark.parametrize("budget", [0, 1, 2, 5, 16])
async def test_a_thinking_budget_ends_the_thought_wherever_the_attempts_meet(subject: Subject, budget: int) -> None:
    tokens = await expect_continuations(subject, (1, 2, 3, 6, 17, 30), **THINKS, thinking_token_budget=budget)
    plain = await subject.run(subject.attempt(**THINKS))
    assert END_OF_THINKING not in plain[: budget + 1], "the budget changes this answer, or the test shows nothing"
    assert tokens[:budget] == plain[:budget]
    assert tokens.index(END_OF_THINKING) == budget


async def test_a_thinking_budget_that_is_not_used_up_changes_nothing(subject: Subject) -> None:
    plain = await subject.run(subject.attempt(**THINKS))
    assert await subject.run(subject.attempt(**THINKS, thinking_token_budget=1024)) == plain


async def test_a_thinking_budget_has_no_say_where_nothing_is_thought(subject: Subject) -> None:
    request = {"prompt": [20, 21, THINK, 30, END_OF_THINKING, 22], "max_tokens": 30}
    plain = await subject.run(subject.attempt(**request))
    assert await subject.run(subject.attempt(**request, thinking_token_budget=2)) == plain


async def test_a_thought_that_ended_within_its_budget_stays_ended(subject: Subject) -> None:
    """The rest of the answer is not cut where the budget would have ended a thought."""
    thought = [40, 41, END_OF_THINKING]
    request = THINKS | {"emitted": thought}
    plain = await subject.run(subject.attempt(**request))
    assert await subject.run(subject.attempt(**request, thinking_token_budget=8)) == plain


async def test_a_seeded_request_continues_the_same_way_each_time(subject: Subject) -> None:
    """Not the way it would have gone on undisturbed: see `serve_app/vllm_patches/resume.py`."""
    # Hot, or a model that is sure of what comes next says the same whatever the random numbers are.
    request = {"max_tokens": 30, "temperature": 2.0, "seed": 7}
    undisturbed = await subject.run(subject.attempt(**request))
    assert await subject.run(subject.attempt(**request)) == undisturbed
    continued = [await subject.run(subject.attempt(**request, emitted=undisturbed[:10])) for _ in range(2)]
    assert continued[0] == continued[1]
    assert continued[0][:10] != undisturbed[:10], "it does not repeat the random numbers of the beginning"


async def test_a_seed_gives_the_same_however_the_prompt_is_cut(subject: Subject) -> None:
    """In several steps first, then with its beginning in the prefix cache: a token is sampled and thrown away for each
    piece but the last."""
    prompt = [30 + number * 7 % 400 for number in range(330)]
    request: dict[str, Any] = {"max_tokens": 20, "temperature": 2.0, "seed": 11, "prompt": prompt}
    first = await subject.run(subject.attempt(**request))
    assert await subject.run(subject.attempt(**request)) == first
    assert await subject.run(subject.attempt(**(request | {"seed": 12}))) != first


async def test_a_client_cannot_mark_its_own_request_as_resumed(subject: Subject) -> None:
    marked = {"step_serve_resumed": {"emitted": 3, "min_tokens": 0}, "step_serve_emitted": [1, 2, 3]}
    assert await subject.run(subject.attempt(max_tokens=9, extra_args=marked)) == await subject.run(
        subject.attempt(max_tokens=9)
    )
