"""`python -m bench front-end`: its model, its requests, and what it counts."""

from __future__ import annotations

import json
from array import array

import pytest

from bench.cpu import ENGINE
from bench.front_end import cases, command, model, pace
from bench.front_end.command import Measured
from bench.front_end.streams import Result, Stream
from bench.servers import BARE, OURS


def test_the_large_tokenizer_gets_the_demos_markup_under_new_ids() -> None:
    large = {"model": {"vocab": {"a": 0, "b": 7}}, "added_tokens": [{"id": 8, "content": "<x>", "special": True}]}
    demo = {
        "added_tokens": [
            {"id": 3, "content": "<|im_end|>", "special": True},
            {"id": 4, "content": "a word", "special": False},
            {"id": 5, "content": "</think>", "special": False},
        ]
    }
    tokenizer, ids = model.with_markup(large, demo)
    assert [(token["id"], token["content"]) for token in tokenizer["added_tokens"]] == [
        (8, "<|im_end|>"),
        (9, "</think>"),
    ]
    assert ids == {3: 8, 5: 9}
    config = {"eos_token_id": [3, 5], "text_config": {"bos_token_id": 5, "vocab_size": 3}}
    new = {"eos_token_id": [8, 9], "text_config": {"bos_token_id": 9, "vocab_size": 3}}
    assert model.renumbered(config, ids) == new


@pytest.mark.parametrize("api", cases.APIS, ids=lambda api: api.name)
def test_each_stream_asks_for_the_tokens_of_its_steps(api: cases.Api) -> None:
    case = cases.streams(api, 3, seconds=2.0)  # and a twentieth of a second to begin: no step more
    bodies = [json.loads(body) for body in case.bodies]
    assert len(bodies) == case.requests == case.concurrency == 3
    assert case.steps == 40
    assert {body[api.max_tokens] for body in bodies} == {pace.tokens_per_request(40)} == {100}
    assert all(body["stream"] for body in bodies)


def test_a_later_turn_repeats_the_first_one() -> None:
    for first, later in (cases.conversation(32_000, 1), cases.pictures(1)):
        history = json.loads(first.bodies[0])["messages"]
        assert json.loads(later.bodies[0])["messages"][: len(history)] == history


def test_chunks_are_as_late_as_they_come_after_the_engines_step() -> None:
    stream = Stream(0.0, array("d", [10.001, 10.053, 10.102]).tolist())
    late_ms, gaps_ms = command._timing(Result([stream]), 10.0, 10.1)
    assert late_ms == pytest.approx([1.0, 3.0])
    assert gaps_ms == pytest.approx([52.0])


def test_cpu_time_is_counted_while_all_streams_run() -> None:
    def stream(first_s: float, last_s: float) -> Stream:
        return Stream(first_s - 1, [first_s, last_s])

    assert command.steady_time(Result([stream(10.0, 20.0), stream(12.0, 22.0)])) == (13.0, 20.0)
    assert command.steady_time(Result([stream(10.0, 20.0), stream(19.5, 40.0)])) == (20.0, 30.0)


def test_the_table_has_the_ratio_to_the_bare_server() -> None:
    def measured(server: str, cpu_ms: dict[str, float]) -> Measured:
        return Measured("chat, 64 streams", server, cpu_ms, "1,000 chunks", 5.0, 9.0, 1.0, 2.0, 50.0, 1280.0)

    found = [measured(BARE.name, {"API server": 200.0}), measured(OURS.name, {"ingress": 60.0, "HAProxy": 40.0})]
    lines = command.as_text(found).splitlines()
    assert ENGINE not in lines[2]
    assert lines[2].split()[:3] == ["bare", "200.0", "1.00"]
    assert lines[3].split()[:3] == ["ours", "100.0", "0.50"]
