"""Parsers of one kind share what is always the same about them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from vllm.parser.engine import streaming_parser_engine

from serve_app.vllm_patches.parsers import TABLES, ReasoningCounter, keep_tables, keeping


class Counted:
    """Makes a new table at every call, and counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, config: object, tokenizer: object) -> object:
        self.made += 1
        return [config, tokenizer]


def test_the_same_configuration_and_tokenizer_share_a_table() -> None:
    build, config, tokenizer = Counted(), {"unhashable": []}, {"unhashable": []}  # type: ignore[var-annotated]
    kept = keeping(build)
    assert kept(config, tokenizer) is kept(config, tokenizer)
    assert build.made == 1


def test_an_equal_configuration_that_is_another_object_has_a_table_of_its_own() -> None:
    kept = keeping(Counted())
    first, second = {"a": 1}, {"a": 1}
    assert kept(first, None) is not kept(second, None)


def test_no_more_than_a_few_tables_are_kept() -> None:
    build = Counted()
    kept = keeping(build)
    configs: list[dict[str, int]] = [{} for _ in range(TABLES + 1)]
    for config in (*configs, configs[0]):
        kept(config, None)
    assert build.made == TABLES + 2


def test_vllm_builds_its_tables_through_it_and_only_once() -> None:
    keep_tables()
    build = streaming_parser_engine._build_drop_info
    keep_tables()
    assert streaming_parser_engine._build_drop_info is build
    assert hasattr(build, "__wrapped__")


THINK_END, SPECIAL = 7, {7, 8}


class End:
    def __init__(self, offset: int) -> None:
        self.offset = offset


def find_end(token_ids: Sequence[int]) -> End:
    return End(token_ids.index(THINK_END) if THINK_END in token_ids else len(token_ids))


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=12))
def test_counting_as_an_answer_grows_is_counting_all_of_it(deltas: list[list[int]]) -> None:
    growing, so_far = ReasoningCounter(), list[int]()
    for delta in deltas:
        so_far.extend(delta)
        whole = so_far[: find_end(so_far).offset]
        assert growing.count(tuple(so_far), find_end, SPECIAL) == sum(one not in SPECIAL for one in whole)
