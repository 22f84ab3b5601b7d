"""Parsers of one kind share what is always the same about them."""

from __future__ import annotations

from vllm.parser.engine import streaming_parser_engine

from serve_app.vllm_patches.parsers import TABLES, keep_tables, keeping


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
