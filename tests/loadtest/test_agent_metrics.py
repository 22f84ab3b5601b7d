"""The possible hits, the balance and the windows of agents' sessions follow from what was sent before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.api.record import Record
from loadtest.data.prompt import Prompt
from loadtest.errors import RequestOutcome
from loadtest.metrics.agent_metrics import AgentMetrics, TurnKind, agent_metrics_of
from tests.loadtest.records import record, run_of


def prompt(session: int, turn: int, tokens: int, parent: int = -1) -> Prompt:
    return Prompt(
        session=session, turn=turn, parent=parent, prompt_tokens=tokens, output_tokens=10, shared_prefix="p",
        shared_prefix_tokens=100,
    )  # fmt: skip


def answered(index: int, start_ms: float, tokens: int, cached: int, replica: str, *, ok: bool = True) -> Record:
    """Ten answer tokens in 100 ms."""
    return replace(
        record(start_ms, 10, 10, 10, index=index, ok=ok), prompt_tokens=tokens, cached_tokens=cached, replica=replica
    )


PROMPTS = [
    prompt(0, 0, 150),
    prompt(0, 1, 200),
    prompt(1, 0, 250, parent=0),
    prompt(0, 2, 260),
    prompt(2, 0, 160),
]
RECORDS = [
    answered(0, 0, 150, 0, "a"),
    answered(1, 200, 200, 0, "b"),
    answered(2, 400, 250, 200, "b"),
    answered(3, 600, 260, 160, "a"),
    answered(4, 1050, 160, 100, ""),
]


def metrics_of(records: list[Record], window_s: float = 0.5) -> AgentMetrics:
    found = agent_metrics_of(PROMPTS, run_of(records), window_s, {4: "from the log"})
    assert found is not None
    return found


def test_what_was_possible_is_what_was_sent_before() -> None:
    found = metrics_of(RECORDS)
    # A program's first prompt; one after it; a child after its parent's; the parent's own; a program known by then.
    assert [turn.possible_tokens for turn in found.turns] == [0, 160, 210, 210, 100]
    assert found.figures.hit_ratio == pytest.approx(460 / 1020)
    assert found.figures.possible_hit_ratio == pytest.approx(680 / 1020)
    assert found.figures.share_of_possible == pytest.approx(460 / 680)
    assert {kind: figures.requests for kind, figures in found.by_kind.items()} == {
        TurnKind.SESSION_START: 2,
        TurnKind.LATER_TURN: 2,
        TurnKind.CHILD_START: 1,
    }


def test_a_failure_is_a_miss_of_all_that_was_possible() -> None:
    failed = replace(RECORDS[3], outcome=RequestOutcome.CUT, prompt_tokens=0)
    found = metrics_of([*RECORDS[:3], failed, RECORDS[4]])
    assert found.figures.failed == 1
    turn = found.turns[3]
    assert (turn.prompt_tokens, turn.cached_tokens, turn.possible_tokens, turn.ttft_ms) == (260, 0, 210, None)


def test_interrupted_requests_count_nowhere() -> None:
    interrupted = replace(RECORDS[4], outcome=RequestOutcome.INTERRUPTED)
    assert metrics_of([*RECORDS[:4], interrupted]).figures.requests == 4


def test_a_request_runs_where_its_response_or_the_log_says() -> None:
    found = metrics_of(RECORDS)
    assert found.balance is not None
    assert {name: load.requests for name, load in found.balance.replicas.items()} == {"a": 2, "b": 2, "from the log": 1}
    assert found.balance.requests == pytest.approx(2 / (5 / 3))
    assert found.balance.computed_tokens == pytest.approx(250 / (560 / 3))
    assert found.unnamed == 0
    unnamed = metrics_of([replace(one, index=min(one.index, 3), replica="") for one in RECORDS])
    assert (unnamed.balance, unnamed.unnamed) == (None, 5)


def test_a_window_has_what_started_in_it_and_the_time_within() -> None:
    found = metrics_of(RECORDS, window_s=0.45)
    assert [(round(window.begin_s, 2), window.figures.requests) for window in found.windows] == [
        (0.0, 3),
        (0.45, 1),
        (0.9, 1),
    ]
    first, second = found.windows[0].balance, found.windows[1].balance
    assert first is not None
    assert second is not None
    # The third request runs from 400 to 500 ms; its tokens are computed in the first window.
    assert first.replicas["b"].running_s == pytest.approx(0.15)
    assert second.replicas["b"].running_s == pytest.approx(0.05)
    assert (first.replicas["b"].computed_tokens, second.replicas["b"].computed_tokens) == (250, 0)


def test_other_data_has_no_such_figures() -> None:
    assert agent_metrics_of([Prompt(text="x")], run_of(RECORDS[:1]), 60.0, {}) is None
