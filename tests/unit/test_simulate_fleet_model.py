"""The simulated fleet: nothing is lost or made up, and the same trace gives the same figures."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from serve_app.simulate.engine_model import EngineSpec
from serve_app.simulate.fleet_model import FleetSpec, FleetView, SimulationResult, simulate
from serve_app.simulate.policies import StaticScaler
from serve_app.simulate.replica_model import QueueLimits
from serve_app.simulate.trace import TraceRequest

ENGINE = EngineSpec(prefill_tokens_per_s=2000.0, max_num_seqs=8, max_num_batched_tokens=512, start_s=30.0)


@dataclass
class Steps:
    """As many replicas as a list says, one entry for each look."""

    numbers: list[int]
    seen: list[FleetView] = field(default_factory=list)

    def wanted(self, view: FleetView) -> tuple[int, str]:
        self.seen.append(view)
        return self.numbers[min(len(self.seen), len(self.numbers)) - 1], f"look {len(self.seen)}"


def trace(number: int, per_s: float, seed: int = 0) -> list[TraceRequest]:
    draw, at_s, found = random.Random(seed), 0.0, []
    for _ in range(number):
        session = draw.choice(["", "", "a", "b"])
        prompt = draw.randint(100, 4000)
        prefix = draw.randrange(prompt) if session else 0
        found.append(TraceRequest(at_s, prompt, draw.randint(1, 200), session, prefix, draw.choice(["x", "y"])))
        at_s += draw.expovariate(per_s)
    return found


def run(requests: list[TraceRequest], replicas: int, **limits: float) -> SimulationResult:
    spec = FleetSpec(ENGINE, QueueLimits(**limits), min_replicas=replicas, max_replicas=replicas)  # type: ignore[arg-type]  # numbers of both kinds
    return simulate(requests, spec, StaticScaler(replicas))


@pytest.mark.parametrize("limits", [{}, {"max_queued_requests": 4}, {"max_queue_wait_s": 20.0}])
@pytest.mark.parametrize("replicas", [1, 3])
def test_each_request_is_answered_or_refused_once(replicas: int, limits: dict[str, float]) -> None:
    requests = trace(400, 3.0)
    result = run(requests, replicas, **limits)
    assert sorted(one.request.arrival_s for one in result.requests) == [one.arrival_s for one in requests]
    refused = [one for one in result.requests if one.ttft_s is None]
    assert all(one.refused for one in refused)
    if replicas == 1:  # it gets more than it can do
        assert bool(refused) == bool(limits)


def test_an_engine_computes_no_faster_than_it_can() -> None:
    result = run(trace(300, 5.0), 2)
    for one in result.requests:
        computed = one.request.prompt_tokens - one.request.prefix_tokens
        assert one.ttft_s is not None
        assert one.ttft_s >= computed / ENGINE.prefill_tokens_per_s
        assert one.request.output_tokens <= ENGINE.tokens_per_step or one.tpot_s > 0
    tokens = sum(one.prompt_tokens - one.prefix_tokens for one in trace(300, 5.0))
    assert result.ended_s * 2 * ENGINE.prefill_tokens_per_s >= tokens


def test_the_same_trace_gives_the_same_figures() -> None:
    assert run(trace(300, 4.0), 2).requests == run(trace(300, 4.0), 2).requests
    assert run(trace(300, 4.0), 2).requests != run(trace(300, 4.0, seed=1), 2).requests


def test_more_replicas_answer_sooner() -> None:
    waits = [sum(one.ttft_s or 0.0 for one in run(trace(300, 3.0), replicas).requests) for replicas in (1, 2, 4)]
    assert waits == sorted(waits, reverse=True)


def test_replicas_count_from_the_decision_to_start_them_until_they_are_gone() -> None:
    requests = [TraceRequest(at_s, 100, 3) for at_s in range(0, 101, 10)]
    scaler = Steps([2, 2, 2, 2, 2, 1])
    spec = FleetSpec(ENGINE, min_replicas=1, max_replicas=2, tick_s=10.0)
    result = simulate([*requests], spec, scaler)
    assert [(event.at_s, event.before, event.after) for event in result.scale_events] == [(10.0, 1, 2), (60.0, 2, 1)]
    assert result.scale_events[0].reason == "look 1"
    assert [view.starting for view in scaler.seen[1:5]] == [1, 1, 0, 0]
    assert result.replica_s == pytest.approx(result.ended_s + 50.0, abs=1.0)


def test_requests_wait_for_the_first_replica() -> None:
    spec = FleetSpec(ENGINE, min_replicas=0, max_replicas=1, tick_s=10.0)
    result = simulate([TraceRequest(0.0, 100, 3)], spec, Steps([1]))
    assert result.requests[0].ttft_s == pytest.approx(40.0, abs=0.2)


def test_a_session_finds_its_prefix_cached_where_it_was() -> None:
    requests = [TraceRequest(0.0, 4000, 3, "s"), TraceRequest(10.0, 4100, 3, "s", 4000)]
    first, second = run(requests, 2).requests
    assert first.replica == second.replica
    assert first.ttft_s is not None
    assert second.ttft_s is not None
    assert second.ttft_s < first.ttft_s / 4
