"""The fleet's picture from Ray's two endpoints and the engines' metrics pages, against a server that plays them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter_ns

import msgspec
import pytest

from loadtest.api.record import RunRecords
from loadtest.errors import TargetError
from loadtest.fleet import poller as poller_module
from loadtest.fleet.poller import FleetPoller, PollTargets
from loadtest.fleet.prometheus import COUNTERS, MEANS, SUMS, MetricsReader, MetricValues
from loadtest.fleet.snapshots import (
    FleetSnapshot,
    ServeDeployment,
    ServeReplica,
    ServeStatus,
    build_view,
    take_snapshot,
)
from loadtest.fleet.view import SpecDecode, TimelineEvent
from loadtest.http.address import parse_url
from loadtest.http.pool import Endpoint

PAGE = """# HELP ray_vllm_num_requests_waiting Waiting.
ray_vllm_num_requests_waiting{{ReplicaId="a",model_name="m"}} {waiting}
ray_vllm_num_requests_waiting{{ReplicaId="b",model_name="m"}} 1.0
ray_vllm_kv_cache_usage_perc{{ReplicaId="a"}} 0.5
ray_vllm_kv_cache_usage_perc{{ReplicaId="b"}} 0.25
ray_vllm_spec_decode_num_drafts_total{{ReplicaId="a"}} {drafts}
ray_vllm_spec_decode_num_accepted_tokens_total{{ReplicaId="a"}} {accepted}
ray_vllm_spec_decode_num_accepted_tokens_per_pos_total{{ReplicaId="a",position="0"}} 99
ray_vllm_time_to_first_token_seconds_sum{{ReplicaId="a"}} {ttft_sum}
ray_vllm_time_to_first_token_seconds_count{{ReplicaId="a"}} {ttft_count}
ray_vllm_time_to_first_token_seconds_bucket{{ReplicaId="a",le="0.1"}} 7
ray_serve_deployment_queued_queries{{deployment="Ingress"}} 3
"""


class FakeRay:
    """Ray's dashboard and one node's metrics page on one port; what it says can be changed while it runs."""

    def __init__(self) -> None:
        self.token = "t0ken"
        self.replicas = {"Engine#1": "RUNNING", "Engine#2": "STARTING"}
        self.target = 2
        self.decisions: list[dict[str, object]] | None = None
        self.numbers = {"waiting": 2, "drafts": 10, "accepted": 20, "ttft_sum": 1.0, "ttft_count": 10}
        self.port = 0
        self.application = True
        self.dead_nodes: list[str] = []
        self.failing = ""
        self.requests: Counter[str] = Counter()
        self._answered = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                status, body = self.answer(head.split(" ")[1], head)
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
                await writer.drain()
                async with self._answered:
                    self.requests[head.split(" ")[1]] += 1
                    self._answered.notify_all()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def served(self, count: int, path: str) -> None:
        """Wait until a path was requested so often."""
        async with self._answered:
            await self._answered.wait_for(lambda: self.requests[path] >= count)

    def answer(self, path: str, head: str) -> tuple[int, str]:
        if self.failing and path.startswith(self.failing):
            return 500, "{}"
        if path == "/metrics":
            return 200, PAGE.format(**self.numbers)
        if f"Bearer {self.token}" not in head:
            return 401, "{}"
        if path == "/api/prometheus/sd":
            return 200, json.dumps([{"targets": [f"127.0.0.1:{self.port}", *self.dead_nodes], "labels": {}}])
        if not self.application:
            return 200, json.dumps({"applications": {}})
        engine = {
            "replicas": [{"replica_id": name, "state": state, "extra": 1} for name, state in self.replicas.items()],
            "target_num_replicas": self.target,
            "status_trigger": "AUTOSCALING",
            "autoscaling_detail": None if self.decisions is None else {"decisions": self.decisions},
        }
        return 200, json.dumps({"applications": {"step": {"status": "RUNNING", "deployments": {"Engine": engine}}}})


@pytest.fixture
async def ray() -> AsyncIterator[FakeRay]:
    fake = FakeRay()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    yield fake
    server.close()


def run_around(times_ns: list[int]) -> RunRecords:
    return RunRecords([], times_ns[0], times_ns[-1] + 10**9, 1000.0)


async def test_replicas_decisions_losses_and_gauges_come_together(ray: FakeRay) -> None:
    poller = FleetPoller(PollTargets(f"http://127.0.0.1:{ray.port}", ray.token, None))
    async with poller:
        ray.replicas = {"Engine#1": "STOPPING", "Engine#2": "RUNNING", "Engine#3": "STARTING"}
        ray.decisions = [{"timestamp_s": 1000.5, "reason": "queue", "prev_num_replicas": 1, "curr_num_replicas": 2}]
        ray.numbers |= {"drafts": 30, "accepted": 56, "ttft_sum": 3.0, "ttft_count": 20}
        await poller.wait_for_counters(completed=10)
        run = run_around([snapshot.at_ns for snapshot in poller._snapshots])
        view = poller.view(run, client_ttft_ms=260.0, events=[])
    assert view.problem == ""
    assert view.replicas == {"Engine RUNNING": [1, 1], "Engine STARTING": [1, 1], "Engine STOPPING": [0, 1]}
    assert view.target_replicas == [2.0, 2.0]
    assert view.queued == [6.0, 6.0]
    assert view.kv_usage == [0.375, 0.375]
    assert view.acceptance == [None, pytest.approx(1 + 36 / 20)]
    assert view.ttft_breakdown is not None
    assert view.ttft_breakdown.in_engine == pytest.approx(200.0)
    assert view.ttft_breakdown.outside_engine == pytest.approx(60.0)
    assert {(event.kind, event.what) for event in view.events} == {
        ("scale", "Engine: 1 to 2 replicas (queue)"),
        ("death", "Engine: replica Engine#1 was lost"),
        ("scale", "Engine: replica Engine#2 is ready"),
    }


def snapshots_of(*answers: dict[str, object]) -> list[FleetSnapshot]:
    """Snapshots of deployments `Engine` as Ray 2.60's own schema classes write them."""
    bodies = [msgspec.json.decode(true_answer(engine), type=ServeStatus) for engine in answers]
    return [take_snapshot(body, MetricValues({})) for body in bodies]


def true_answer(engine: dict[str, object]) -> bytes:
    """What `GET /api/serve/applications/` says of one deployment, made as Ray's controller makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own classes use what pydantic deprecates
        from ray.serve.schema import ApplicationDetails, DeploymentDetails, ReplicaDetails, ServeInstanceDetails
    replicas = [
        ReplicaDetails(replica_id=name, state=state, start_time_s=1.0, pid=7, actor_id="ab", node_ip="10.0.0.1")
        for name, state in dict(engine["replicas"]).items()  # type: ignore[call-overload]
    ]
    deployment = DeploymentDetails(
        name="Engine", status="HEALTHY", status_trigger=engine["trigger"], message="",
        deployment_config={"name": "Engine"}, target_num_replicas=engine["target"], required_resources={"GPU": 8},
        replicas=replicas, recent_dead_replicas=[], autoscaling_detail=engine.get("detail"),
    )  # fmt: skip
    application = ApplicationDetails(
        name="step", route_prefix="/", docs_path=None, status="RUNNING", message="", last_deployed_time_s=1.0,
        source="declarative", deployments={"Engine": deployment}, external_scaler_enabled=False,
    )  # fmt: skip
    whole = ServeInstanceDetails(proxies={}, applications={"step": application})
    return json.dumps(whole._get_user_facing_json_serializable_dict(exclude_unset=True)).encode()


@pytest.mark.ray
def test_rays_own_schema_is_understood() -> None:
    detail = {
        "scaling_status": "UPSCALING",
        "decisions": [
            {"timestamp_s": 1000.5, "reason": "load", "prev_num_replicas": 2, "curr_num_replicas": 3, "policy": "p"}
        ],
    }
    snapshots = snapshots_of(
        {"target": 2, "trigger": "AUTOSCALING", "replicas": {"a": "RUNNING", "b": "STARTING"}},
        {"target": 3, "trigger": "AUTOSCALING", "replicas": {"a": "RUNNING", "b": "RUNNING"}},
        {"target": 3, "trigger": "HEALTH_CHECK_FAILED", "replicas": {"a": "STOPPING", "b": "RUNNING"}},
        {"target": 1, "trigger": "DOWNSCALE_COMPLETED", "replicas": {"a": "PENDING_MIGRATION"}},
    )
    view = build_view(snapshots, run_around([snapshot.at_ns for snapshot in snapshots]), 0.0, [], "")
    assert view.target_replicas == [2, 3, 3, 1]
    assert view.replicas["Engine RUNNING"] == [1, 2, 1, 0]
    assert [event.what for event in view.events] == [
        "Engine: target 2 to 3 replicas (autoscaling)",
        "Engine: replica b is ready",
        "Engine: replica a was lost",
        "Engine: target 3 to 1 replicas (downscale completed)",
        "Engine: replica b was removed",
        "Engine: replica a is ready",
    ]
    reported = snapshots_of({"target": 2, "trigger": "AUTOSCALING", "replicas": {}, "detail": detail})
    events = build_view(reported, run_around([reported[0].at_ns]), 0.0, [], "").events
    assert [event.what for event in events] == ["Engine: 2 to 3 replicas (load)"]


@pytest.mark.ray
def test_a_ray_without_serve_has_no_target() -> None:
    from ray.serve.schema import ServeInstanceDetails

    empty = msgspec.json.decode(json.dumps(ServeInstanceDetails.get_empty_schema_dict()), type=ServeStatus)
    assert take_snapshot(empty, MetricValues({})).target() is None


@pytest.mark.engine
def test_vllm_has_the_metrics_that_are_read() -> None:
    """By their names in vLLM's source; Ray's are the same with `ray_vllm_` (`vllm/v1/metrics/ray_wrappers.py`)."""
    folder = Path(str(importlib.util.find_spec("vllm").origin)).parent / "v1"  # type: ignore[union-attr]
    source = "".join(
        (folder / name).read_text()
        for name in ("metrics/loggers.py", "spec_decode/metrics.py", "metrics/ray_wrappers.py")
    )
    for name in {*SUMS, *MEANS, *COUNTERS}:
        if name.startswith("vllm:"):
            plain = name.removesuffix("_total").removesuffix("_sum").removesuffix("_count")
            assert f'"{plain}"' in source


def test_what_the_ingress_holds_and_no_engine_runs_is_waiting() -> None:
    def queued(*lines: str) -> float | None:
        values = MetricsReader().update({"node": "\n".join(lines)})
        return build_view([take_snapshot(ServeStatus(), values)], run_around([perf_counter_ns()]), 0.0, [], "").queued[
            0
        ]

    held = 'ray_serve_replica_processing_queries{deployment="ingress",replica="a"} 18.0'
    other = 'ray_serve_replica_processing_queries{deployment="engine",replica="b"} 40.0'
    known = 'ray_vllm_time_to_first_token_seconds_count{ReplicaId="b"} 7'
    running = 'ray_vllm_num_requests_running{ReplicaId="b"} 5.0'
    assert queued(held, other, known) == 18, "the engine is gone"
    assert queued(held, other, known, running) == 13
    assert queued(held, other, known, running, 'ray_vllm_num_requests_waiting{ReplicaId="b"} 20.0') == 20
    assert queued(held, other) is None, "no engine tells what it runs"


async def test_a_missing_token_is_reported_and_does_not_stop_the_run(ray: FakeRay) -> None:
    async with FleetPoller(PollTargets(f"http://127.0.0.1:{ray.port}", None, None)) as poller:
        view = poller.view(RunRecords([], 0, 10**9, 0.0), 1.0, [])
    assert "--ray-token" in view.problem
    assert view.at_s == []


async def test_an_unreachable_dashboard_fails_before_the_run() -> None:
    with pytest.raises(TargetError, match="cannot reach"):
        await FleetPoller(PollTargets("http://127.0.0.1:9", None, None)).__aenter__()


async def test_a_bare_server_shows_its_own_gauges(ray: FakeRay) -> None:
    endpoint = Endpoint(parse_url(f"http://127.0.0.1:{ray.port}"), "127.0.0.1")
    async with FleetPoller(PollTargets(None, None, endpoint)) as poller:
        view = poller.view(run_around([poller._snapshots[0].at_ns]), 1.0, [])
    assert view.target_replicas == [None]
    assert view.kv_usage == [0.375]


def test_vllms_own_names_are_read_too() -> None:
    page = 'vllm:num_requests_waiting{engine="0"} 4\nvllm:kv_cache_usage_perc{engine="0"} 0.1\nnum_requests_waiting 9\n'
    values = MetricsReader().update({"a": page, "b": page})
    assert values.get("waiting") == 8
    assert values.get("kv_usage") == pytest.approx(0.1)
    assert values.get("drafts") is None


def test_counters_outlive_their_replica_and_are_counted_once() -> None:
    def page(**drafts: int) -> dict[str, str]:
        lines = [
            f'ray_vllm_spec_decode_num_drafts{suffix}{{ReplicaId="{replica}"}} {count}'
            for replica, count in drafts.items()
            for suffix in ("_total", "")  # Ray writes a counter twice where it is told to
        ]
        return {"node": "\n".join(lines)}

    reader = MetricsReader()
    assert reader.update(page(a=100)).get("drafts") == 0, "what was counted before the run"
    assert reader.update(page(a=130)).get("drafts") == 30
    assert reader.update(page(b=5)).get("drafts") == 35, "a died, b began"
    assert reader.update({"node": ""}).get("drafts") == 35
    assert reader.update(page(a=3, b=6)).get("drafts") == 39, "a began anew"


def test_no_snapshot_is_a_problem() -> None:
    assert build_view([], RunRecords([], 0, 1, 0.0), 0.0, [], "").problem


@pytest.mark.parametrize(
    "line",
    [
        'ray_vllm_num_requests_waiting{ReplicaId="a"} not-a-number', 'ray_vllm_num_requests_waiting{ReplicaId="a" 3',
        'ray_vllm_num_requests_waiting{ReplicaId="a"}', "ray_vllm_num_requests_waiting{ReplicaId=} {",
        'ray_vllm_num_requests_waiting{ReplicaId="a"} NaN', "# TYPE ray_vllm_num_requests_waiting nonsense", "\x00{{",
    ],
)  # fmt: skip
def test_a_malformed_line_costs_only_its_own_sample(line: str) -> None:
    good = 'ray_vllm_num_requests_waiting{ReplicaId="b"} 4'
    assert MetricsReader().update({"node": f"{line}\n{good}\n{line}"}).get("waiting") == 4


def test_what_exporters_add_to_a_line_is_understood() -> None:
    page = """
# HELP ray_vllm_num_requests_waiting Waiting.
# TYPE ray_vllm_num_requests_waiting gauge
# HELP ray_vllm_num_requests_waiting Waiting.
# TYPE ray_vllm_num_requests_waiting gauge
ray_vllm_num_requests_waiting{ReplicaId="a } \\" {",x=""} 2.0 1395066363000
ray_vllm_num_requests_waiting 1e0
ray_vllm_time_to_first_token_seconds_count{ReplicaId="a"} 7 # {trace_id="x"} 0.05
"""
    values = MetricsReader().update({"node": page})
    assert values.get("waiting") == 3
    assert values.get("ttft_count") == 0


async def test_a_dashboard_without_an_application_is_reported(ray: FakeRay) -> None:
    ray.application = False
    async with FleetPoller(PollTargets(f"http://127.0.0.1:{ray.port}", ray.token, None)) as poller:
        view = poller.view(run_around([poller._snapshots[0].at_ns]), 1.0, [])
    assert view.problem == "Ray's dashboard shows no Serve application"
    assert view.target_replicas == [None]


async def test_a_node_that_dies_hides_neither_the_others_nor_its_own_counters(ray: FakeRay) -> None:
    async with FleetPoller(PollTargets(f"http://127.0.0.1:{ray.port}", ray.token, None)) as poller:
        ray.numbers |= {"ttft_count": 30, "ttft_sum": 3.0}
        await poller._read_pages()
        ray.dead_nodes = ["127.0.0.1:9"]
        ray.numbers |= {"ttft_count": 50, "ttft_sum": 5.0}
        await poller.wait_for_counters(completed=40)
        view = poller.view(run_around([snapshot.at_ns for snapshot in poller._snapshots]), 200.0, [])
    assert "127.0.0.1:9" in view.problem
    assert view.ttft_breakdown is not None
    assert view.ttft_breakdown.in_engine == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("path", "problem"), [("/api/", "Check --ray-dashboard"), ("/metrics", "/metrics answers HTTP")]
)
async def test_an_error_of_a_page_is_reported(ray: FakeRay, path: str, problem: str) -> None:
    ray.failing = path
    async with FleetPoller(PollTargets(f"http://127.0.0.1:{ray.port}", ray.token, None)) as poller:
        view = poller.view(RunRecords([], perf_counter_ns(), perf_counter_ns(), 0.0), 1.0, [])
    assert problem in view.problem


async def test_the_poller_repeats_by_itself(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller_module, "SNAPSHOT_INTERVAL_S", 0.01)
    monkeypatch.setattr(poller_module, "PAGE_INTERVAL_S", 0.01)
    async with FleetPoller(PollTargets(f"http://127.0.0.1:{ray.port}", ray.token, None)):
        ray.requests.clear()
        await asyncio.wait_for(ray.served(3, "/metrics"), 10)
        await asyncio.wait_for(ray.served(3, "/api/serve/applications/"), 10)


def test_removed_lost_and_new_replicas_are_told_apart() -> None:
    def snapshot(at_ns: int, target: int, **states: str) -> FleetSnapshot:
        replicas = [ServeReplica(name, state) for name, state in states.items()]
        return FleetSnapshot(at_ns, {"engine": ServeDeployment(replicas, target, "AUTOSCALING")}, MetricValues({}))

    view = build_view(
        [
            snapshot(10**12, 2, a="RUNNING", b="RUNNING"),
            snapshot(10**12 + 10**9, 2, a="RUNNING", b="STOPPING", c="STARTING"),
            snapshot(10**12 + 2 * 10**9, 1, a="RUNNING", c="RUNNING"),
            snapshot(10**12 + 3 * 10**9, 1, a="STOPPING", c="RUNNING"),
            snapshot(10**12 + 60 * 10**9, 5),
        ],
        RunRecords([], 10**12, 10**12 + 3 * 10**9, 0.0),
        0.0,
        [TimelineEvent(2.5, "kill", "event")],
        "",
    )
    assert view.at_s == [0.0, 1.0, 2.0, 3.0], "a snapshot long after the run is left out"
    assert [(event.at_s, event.what, event.kind) for event in view.events] == [
        (1.0, "engine: replica b was lost", "death"),
        (2.0, "engine: target 2 to 1 replicas (autoscaling)", "scale"),
        (2.0, "engine: replica c is ready", "scale"),
        (2.5, "kill", "event"),
        (3.0, "engine: replica a was lost", "death"),
    ]


def test_two_applications_with_deployments_of_one_name_are_both_kept() -> None:
    body = {"applications": {app: {"deployments": {"engine": {"target_num_replicas": 2}}} for app in ("x", "y")}}
    snapshot = take_snapshot(msgspec.convert(body, ServeStatus), MetricValues({}))
    assert set(snapshot.deployments) == {"x/engine", "y/engine"}
    assert snapshot.target() == 4


def test_ratios_over_the_run_need_a_denominator() -> None:
    def snapshot(at_ns: int, **values: float) -> FleetSnapshot:
        return FleetSnapshot(at_ns, {}, MetricValues(values))

    run = RunRecords([], 0, 10**9, 0.0)
    first = {"drafts": 10.0, "draft_tokens": 30.0, "accepted": 20.0, "prefix_hits": 5.0, "prefix_queries": 10.0}
    last = {"drafts": 30.0, "draft_tokens": 90.0, "accepted": 50.0, "prefix_hits": 20.0, "prefix_queries": 40.0}
    view = build_view([snapshot(0, **first), snapshot(10**9, **last)], run, 0.0, [], "")
    assert view.spec_decode == SpecDecode(20, 60, 30)
    assert view.prefix_hit_ratio == 0.5
    assert view.acceptance == [None, 2.5]
    idle = build_view([snapshot(0, **first), snapshot(10**9, **first)], run, 0.0, [], "")
    assert (idle.spec_decode, idle.prefix_hit_ratio, idle.acceptance) == (None, None, [None, None])
