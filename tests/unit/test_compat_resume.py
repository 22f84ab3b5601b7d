"""The form in which a continuation travels, and what the engine makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.compat.vllm_resume import EMITTED, MARK, continued_seed, emitted_of, mark, take_emitted


def params(**fields: Any) -> Any:
    return SimpleNamespace(**({"max_tokens": 7, "min_tokens": 0, "extra_args": None} | fields))


def request(sampling_params: Any, tokens: list[int]) -> Any:
    return SimpleNamespace(sampling_params=sampling_params, prompt_token_ids=tokens)


def test_a_continuation_becomes_prompt_and_output_again() -> None:
    sampling = params()
    mark(sampling, emitted=3, min_tokens=5)
    core = request(sampling, [1, 2, 30, 40, 50])
    assert take_emitted(core) == [30, 40, 50]
    assert core.prompt_token_ids == [1, 2]
    assert (sampling.max_tokens, sampling.min_tokens) == (10, 5)
    assert emitted_of(sampling) == [30, 40, 50]
    assert take_emitted(core) == [], "once"


def test_a_first_attempt_is_left_alone() -> None:
    sampling = params()
    mark(sampling, emitted=0, min_tokens=5)
    assert sampling.extra_args is None
    core = request(sampling, [1, 2])
    assert take_emitted(core) == []
    assert core.prompt_token_ids == [1, 2]
    assert emitted_of(sampling) == ()


@pytest.mark.parametrize("emitted", [0, 2])
def test_marks_of_a_client_are_removed_and_its_other_arguments_kept(emitted: int) -> None:
    sampling = params(extra_args={MARK: {"emitted": 9, "min_tokens": 0}, EMITTED: [6, 6, 6], "theirs": 1})
    mark(sampling, emitted=emitted, min_tokens=0)
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
