"""The parts of the status page that only compute, and the watch of Serve with a controller of our own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayError, RaySystemError

from serve_app.engine.load_facts import RecentRatio
from serve_app.ingress.serve_watch import ServeWatch
from serve_app.observability import fleet
from serve_app.observability.fleet import Deployment, IngressReport, ScaleDecision, ServeReplica
from serve_app.observability.usage import MAX_KEYS, KeyUsage, UsageLog
from serve_app.protocol.messages import (
    WIRE_VERSION,
    DataChannelAddress,
    ReplicaActivity,
    ReplicaCapacity,
    ReplicaInfo,
    ReplicaLoad,
    decode_info,
    encode_info,
)
from serve_app.router.attempts import ReplicaConnection
from serve_app.scaling.journal import ScaleChange

LOAD = ReplicaLoad(unfinished=5, max_num_seqs=4, kv_usage_ratio=0.5, draining=False, queued=1)


def connection(name: str, activity: ReplicaActivity, *, up: bool = True) -> ReplicaConnection:
    address = DataChannelAddress("10.0.0.7", 1, b"")
    info = ReplicaInfo(WIRE_VERSION, name, LOAD, address, vllm_version="0.33", activity=activity)
    return ReplicaConnection(name, LOAD, ReplicaCapacity(start_s=3.0), info, up=up)


def test_a_replica_is_shown_with_what_it_and_serve_say() -> None:
    activity = ReplicaActivity("busy", "5 requests", 2.5, 0.8)
    serve = [ServeReplica("a", "RUNNING", "10.0.0.1", 100.0), ServeReplica("new", "STARTING", "10.0.0.2", 200.0)]
    old, first, new = fleet.replica_views([connection("a", activity)], {"other": "another version"}, serve)
    assert (first.replica_id, first.node, first.state, first.started_unix_s) == ("a", "10.0.0.1", "busy", 100.0)
    assert (first.unfinished, first.queued, first.tokens_per_step, first.acceptance_ratio) == (5, 1, 2.5, 0.8)
    assert (new.replica_id, new.state, new.takes_work) == ("new", "starting", False)
    assert (old.replica_id, old.state, old.note) == ("other", "refused", "another version")


def test_the_state_is_the_worst_that_is_known() -> None:
    def state(engine: str, **changes: Any) -> str:
        one = connection("a", ReplicaActivity(engine), up=changes.pop("up", True))
        one.draining_since_s = changes.pop("draining", None)
        (view,) = fleet.replica_views([one], {}, [])
        assert view.node == "10.0.0.7", "without Serve, the address of its data channel"
        return view.state

    assert state("idle") == "working"  # its load is newer than its listing
    assert state("slow") == "slow"
    assert state("working", draining=1.0) == "draining"
    assert state("dead", draining=1.0) == "dead"
    assert state("working", up=False) == "connecting"


def test_activity_travels_with_the_listing() -> None:
    info = ReplicaInfo(WIRE_VERSION, "a", LOAD, activity=ReplicaActivity("busy", "2 requests", 1.5, None))
    assert decode_info(encode_info(info)) == info


def test_usage_counts_an_hour_and_forgets_the_key_that_is_silent_longest() -> None:
    log = UsageLog()
    log.add(KeyUsage("a", 1, 10, 5, 2), 1_000_000.0)
    log.add(KeyUsage("a", 1, 10, 5, 2), 1_000_030.0)
    log.add(KeyUsage(None, 1, 100, 0, 1), 1_001_800.0)
    assert log.last_hour(1_001_800.0) == [KeyUsage(None, 1, 100, 0, 1), KeyUsage("a", 2, 20, 10, 4)]
    assert [one.key for one in log.last_hour(1_003_700.0)] == [None]
    for number in range(MAX_KEYS):
        log.add(KeyUsage(str(number), 1, 1, 0, 1), 1_001_900.0)
    assert len(log.last_hour(1_001_900.0)) == MAX_KEYS


def test_a_ratio_follows_what_is_recent() -> None:
    ratio = RecentRatio(memory=100.0)
    assert ratio.value is None
    for _ in range(100):
        ratio.add(3.0, 1.0)
    for _ in range(1000):
        ratio.add(1.0, 1.0)
    assert ratio.value == pytest.approx(1.0, abs=0.01)


def test_every_ingress_saw_the_same_scale_decisions() -> None:
    seen = [ScaleDecision(float(number), "engine", number, number + 1, "") for number in range(3)]
    old, young = (
        IngressReport(name, "", started, 0, scale=scale) for name, started, scale in (("o", 1.0, seen), ("y", 2.0, []))
    )
    assert fleet.longest_history([young, old]) == seen[::-1]
    assert fleet.longest_history([]) == []


def test_a_reason_names_the_loads_and_the_target() -> None:
    scaled, fixed = Deployment("engine", "healthy", 2, autoscaled=True), Deployment("engine", "healthy", 2)
    assert fleet.scale_reason(scaled, [1.5, 0.5], 0.7) == "load 100% on average (150%, 50%), to be held at 70%"
    assert fleet.scale_reason(fixed, [1.0], 0.7) == "the configuration asks for it"


def details(target: int, state: str = "RUNNING") -> dict[str, object]:
    replica = {"replica_id": "a", "state": state, "start_time_s": 5.0, "node_ip": "10.0.0.1", "more": 1}
    engine = {
        "name": "engine",
        "status": "HEALTHY",
        "target_num_replicas": target,
        "message": "",
        "deployment_config": {"autoscaling_config": {"min_replicas": 1}},
        "replicas": [replica],
    }
    return {"applications": {"step": {"deployments": {"engine": engine}}, "other": {"deployments": {}}}}


class Controller:
    """Answers in turn; the last answer stays."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.calls = 0

    async def details(self) -> object:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def views(watch: ServeWatch, count: int) -> list[fleet.ServeView]:
    """So many views, each asked for when the one before has grown old."""
    found = []
    for _ in range(count):
        watch._asked_s = float("-inf")
        found.append(await watch.view())
    return found


async def test_a_changed_target_is_noted_with_its_reason() -> None:
    controller = Controller(details(1), details(2), RayError("away"), {"applications": 3})
    watch = ServeWatch("step", lambda: {"engine": ([1.4], 0.7)}, controller.details)
    first, second, third, fourth = await views(watch, 4)
    assert first.deployments[0].replicas == [ServeReplica("a", "RUNNING", "10.0.0.1", 5.0)]
    (decision,) = watch.decisions
    assert (decision.before, decision.after) == (1, 2)
    assert decision.reason == "load 140% on average (140%), to be held at 70%"
    assert second.problem == "" and third.deployments == second.deployments
    assert "RayError" in third.problem and "ValidationError" in fourth.problem


async def test_the_reason_of_a_policy_that_keeps_a_journal_is_its_own() -> None:
    first = ScaleChange(100.0, 1, 2, "scaled 1 -> 2: because")
    journal = [first]
    controller = Controller(details(2), details(3), details(1))
    watch = ServeWatch(
        "step", lambda: {"engine": ([1.4], 0.7)}, controller.details, lambda name: journal if name == "engine" else []
    )
    await views(watch, 1)
    assert [one.reason for one in watch.decisions] == [first.reason], "also what was before this ingress"
    journal.append(ScaleChange(200.0, 2, 3, "scaled 2 -> 3: again"))
    await views(watch, 1)
    assert watch.decisions[-1] == ScaleDecision(200.0, "engine", 2, 3, "scaled 2 -> 3: again")
    await views(watch, 1)  # somebody else has changed it
    assert [one.after for one in watch.decisions] == [2, 3, 1]
    assert watch.decisions[-1].reason.startswith("load 140%")


async def test_a_journal_that_cannot_be_read_leaves_the_guess() -> None:
    def broken(_deployment: str) -> list[ScaleChange]:
        raise RaySystemError("the head is away")

    controller = Controller(details(1), details(2))
    watch = ServeWatch("step", lambda: {"engine": ([1.4], 0.7)}, controller.details, broken)
    await views(watch, 2)
    assert [one.reason for one in watch.decisions] == ["load 140% on average (140%), to be held at 70%"]


async def test_the_controller_is_asked_once_for_several_pages() -> None:
    controller = Controller(details(1))
    async with ServeWatch("step", dict, controller.details) as watch:
        await asyncio.gather(*(watch.view() for _ in range(10)))
    assert controller.calls == 1
