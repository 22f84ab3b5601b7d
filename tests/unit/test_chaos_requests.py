"""The seed decides the requests, the rounds, the tokens and the replicas of a run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chaos import sampling
from chaos.request_spec import ChaosApi, PromptKind, draw_requests
from chaos.sampling import RoundPlan
from tests.unit.chaos_examples import ANSWER, RULES


def test_the_same_seed_draws_the_same_requests_and_no_two_are_equal() -> None:
    specs = draw_requests(RULES, 60)
    assert specs == draw_requests(RULES, 60)
    assert specs != draw_requests(replace(RULES, seed=1), 60)
    assert len({(spec.path, spec.body) for spec in specs}) == 60
    assert all(40 <= spec.max_tokens <= 200 for spec in specs)


def test_apis_take_turns_and_get_only_kinds_that_they_support() -> None:
    specs = draw_requests(RULES, 40)
    assert [spec.api for spec in specs[:4]] == list(ChaosApi)
    assert {spec.kind for spec in specs if spec.api is ChaosApi.COMPLETIONS} == {PromptKind.TEXT}
    assert {spec.kind for spec in specs if spec.api is ChaosApi.CHAT} == set(PromptKind)
    assert PromptKind.JSON not in {spec.kind for spec in specs if spec.api is ChaosApi.MESSAGES}


def test_text_has_a_fixed_length_where_the_api_supports_it() -> None:
    bodies = {spec.api: json.loads(spec.body) for spec in draw_requests(replace(RULES, kinds=(PromptKind.TEXT,)), 4)}
    fixed = [api for api, body in bodies.items() if body.get("ignore_eos")]
    assert fixed == [ChaosApi.CHAT, ChaosApi.COMPLETIONS, ChaosApi.RESPONSES]
    assert all(body["temperature"] == 0 and body["stream"] for body in bodies.values())


def test_a_closed_loop_uses_every_api_with_and_without_streaming() -> None:
    specs = draw_requests(replace(RULES, streams_only=False, kinds=(PromptKind.TEXT,)), 8)
    assert {(spec.api, spec.stream) for spec in specs} == {
        (api, stream) for api in ChaosApi for stream in (True, False)
    }


def test_rounds_have_every_stream_once_and_each_gets_a_fault() -> None:
    plans = sampling.plan_rounds(1000, 64, None, 0)
    assert len(plans) == 16
    assert sum(plan.count for plan in plans) == 1000
    assert [plan.first for plan in plans[1:]] == [plan.first + plan.count for plan in plans[:-1]]
    assert all(plan.injected and plan.count <= 64 for plan in plans)


def test_more_faults_make_more_rounds_and_fewer_leave_rounds_without_one() -> None:
    assert [plan.count for plan in sampling.plan_rounds(24, 32, 2, 0)] == [12, 12]
    plans = sampling.plan_rounds(100, 10, 3, 0)
    assert len(plans) == 10
    assert sum(plan.injected for plan in plans) == 3
    assert plans == sampling.plan_rounds(100, 10, 3, 0)


def test_a_fault_comes_at_a_token_after_which_its_stream_continues() -> None:
    specs = draw_requests(replace(RULES, kinds=(PromptKind.TEXT,)), 8)
    expected = {spec.number: replace(ANSWER, output_tokens=4 + spec.number) for spec in specs}
    for plan in sampling.plan_rounds(400, 8, None, 0):
        fault_time = sampling.choose_fault_time(plan, specs, expected, None, 0)
        assert plan.first <= fault_time.stream < plan.first + plan.count
        assert 1 <= fault_time.token < 4 + fault_time.stream % 8
        assert 1 <= fault_time.characters <= ANSWER.characters
    plan = RoundPlan(0, 0, 8, injected=True)
    given_token = sampling.choose_fault_time(plan, specs, expected, 10, 0)
    assert (given_token.stream, given_token.token) == (7, 10)
    with pytest.raises(sampling.NoFaultTime, match="more than 11"):
        sampling.choose_fault_time(plan, specs, expected, 11, 0)


def test_every_replica_is_chosen_in_some_round() -> None:
    chosen = [sampling.choose_replica(["b", "a", "c"], number, 0) for number in range(30)]
    assert set(chosen) == {"a", "b", "c"}
    assert chosen == [sampling.choose_replica(["c", "b", "a"], number, 0) for number in range(30)]


def test_the_streams_of_a_round_start_at_different_times() -> None:
    plan = RoundPlan(0, 0, 8, injected=True)
    delays_s = sampling.start_delays_s(plan, 2.0, 0)
    assert len(set(delays_s)) == 8
    assert all(0 <= delay_s <= 2.0 for delay_s in delays_s)
    assert delays_s == sampling.start_delays_s(plan, 2.0, 0)
