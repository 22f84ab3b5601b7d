"""The form in which a continuation travels, and what the engine makes of it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.vllm_patches.resume import (
    EMITTED,
    MARK,
    continued_seed,
    emitted_of,
    encode_resume,
    restore_runner_state,
    take_emitted,
)


def params(**fields: Any) -> Any:
    return SimpleNamespace(**({"max_tokens": 7, "min_tokens": 0, "extra_args": None} | fields))


def request(sampling_params: Any, tokens: list[int]) -> Any:
    return SimpleNamespace(sampling_params=sampling_params, prompt_token_ids=tokens)


def test_a_continuation_becomes_prompt_and_output_again() -> None:
    sampling = params()
    encode_resume(sampling, emitted=3, min_tokens=5)
    core = request(sampling, [1, 2, 30, 40, 50])
    assert take_emitted(core) == [30, 40, 50]
    assert core.prompt_token_ids == [1, 2]
    assert (sampling.max_tokens, sampling.min_tokens) == (10, 5)
    assert emitted_of(sampling) == [30, 40, 50]
    assert take_emitted(core) == [], "once"


def test_a_first_attempt_is_left_alone() -> None:
    sampling = params()
    encode_resume(sampling, emitted=0, min_tokens=5)
    assert sampling.extra_args is None
    core = request(sampling, [1, 2])
    assert take_emitted(core) == []
    assert core.prompt_token_ids == [1, 2]
    assert emitted_of(sampling) == ()


@pytest.mark.parametrize("emitted", [0, 2])
def test_marks_of_a_client_are_removed_and_its_other_arguments_kept(emitted: int) -> None:
    sampling = params(extra_args={MARK: {"emitted": 9, "min_tokens": 0}, EMITTED: [6, 6, 6], "theirs": 1})
    encode_resume(sampling, emitted=emitted, min_tokens=0)
    core = request(sampling, [1, 2, 3])
    assert take_emitted(core) == ([2, 3] if emitted else [])
    assert sampling.extra_args["theirs"] == 1
    assert list(emitted_of(sampling)) == ([2, 3] if emitted else [])


def test_a_request_without_sampling_parameters_is_none_of_ours() -> None:
    assert take_emitted(request(None, [1, 2])) == []
    assert emitted_of(None) == ()


def test_a_continued_seed_depends_on_seed_and_place_alone() -> None:
    assert continued_seed(7, 10) == continued_seed(7, 10)
    assert len({continued_seed(7, 10), continued_seed(7, 11), continued_seed(8, 10), 7}) == 4
    assert 0 <= continued_seed(2**63 - 1, 100_000) < 2**63


class RunnerState:
    """Stands for `CachedRequestState` of vLLM's V1 runner."""

    def __init__(self, sampling_params: Any, generator: Any = None, output: list[int] | None = None) -> None:
        self.sampling_params = sampling_params
        self.generator = generator
        self.output_token_ids = output or []


def restored(state: RunnerState) -> RunnerState:
    restore_runner_state(lambda _: None, sys)(state)
    return state


def test_the_runner_starts_with_the_output_it_has() -> None:
    seeds: list[int] = []
    sampling = params(extra_args={EMITTED: [4, 5]}, seed=11)
    state = restored(RunnerState(sampling, SimpleNamespace(manual_seed=seeds.append)))
    assert state.output_token_ids == [4, 5]
    assert state.output_token_ids is not sampling.extra_args[EMITTED], "the runner appends to it"
    assert seeds == [continued_seed(11, 2)]


def test_other_requests_start_empty_in_the_runner() -> None:
    assert restored(RunnerState(params())).output_token_ids == []
    assert restored(RunnerState(None)).output_token_ids == []
