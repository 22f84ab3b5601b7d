"""The fleet's picture from Ray's two endpoints and the engines' metrics pages, against a server that plays them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from time import perf_counter_ns

import pytest

from loadtest.api.record import RunRecords
from loadtest.errors import TargetError
from loadtest.fleet import poller as poller_module
from loadtest.fleet.poller import FleetPoller, PollTargets
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
