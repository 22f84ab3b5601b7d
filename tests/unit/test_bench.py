"""The benchmark's arithmetic, and the deployment files that it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report
from bench.cpu import ENGINE, CpuClock, CpuSample
from bench.measure import BenchLoad, BenchResult, BenchRun
from bench.servers import BARE, FAST_OPTIONS, OURS, PROXY, WITHOUT_DRAFTS, Topology, ours, relocated
from serve_app.config import deployment, profile


def run_of(topology: str, number: int, tok_per_s: float, front_end_s: float) -> BenchRun:
    return BenchRun(
        topology=topology,
        round=number,
        output_tok_per_s=tok_per_s,
        median_ttft_ms=50,
        median_itl_ms=5,
        output_tokens=10_000,
        duration_s=5,
        cpu_s={ENGINE: 9.0, "ingress": front_end_s},
    )


def result_of(*runs: BenchRun) -> BenchResult:
    idle = {BARE.name: {"ingress": 0.0}, OURS.name: {"ingress": 0.1, ENGINE: 0.5}}
    return BenchResult(BenchLoad(rounds=2), [BARE, OURS], idle, runs)


def test_ratios_are_to_the_bare_server_of_the_same_round() -> None:
    result = result_of(
        run_of("bare", 0, 1000, 1.0),
        run_of("ours", 0, 800, 1.5),
        run_of("ours", 1, 300, 3.0),
        run_of("bare", 1, 400, 2.0),
    )
    assert report.ratios(result, "ours", report.speed) == pytest.approx([0.8, 0.75])
    assert report.ratios(result, "ours", report.front_end) == pytest.approx([1.5, 1.5])


def test_targets_are_for_the_median() -> None:
    result = result_of(
        *(run_of("bare", number, 1000, 1.0) for number in range(3)),
        run_of("ours", 0, 780, 1.9),
        run_of("ours", 1, 770, 2.0),
        run_of("ours", 2, 100, 9.0),
    )
    assert [target.is_met for target in report.targets(result)] == [True, True]
    slow = result_of(run_of("bare", 0, 1000, 1.0), run_of("ours", 0, 750, 2.1))
    assert [target.is_met for target in report.targets(slow)] == [False, False]


def test_front_end_cpu_excludes_the_engine_and_idle_time_is_subtracted() -> None:
    run = run_of("ours", 0, 2000, 2.0)
    assert run.front_end_cpu_s_per_1k == pytest.approx(0.2)
    assert report.above_idle(result_of(run), run) == pytest.approx((2.0 - 0.1 * 5) / 10)


def test_no_more_idle_time_is_subtracted_than_a_process_burned() -> None:
    run = run_of("ours", 0, 2000, 0.3)
    assert report.above_idle(result_of(run), run) == 0.0


def test_cpu_time_is_that_between_the_samples_around_a_run() -> None:
    clock = CpuClock([])
    clock._samples = [CpuSample(at_s, {"proxy": at_s * 2}) for at_s in (1.0, 1.1, 1.2, 1.3)]
    assert clock.between(1.12, 1.25) == pytest.approx({"proxy": 0.4})
    assert clock.between(0.5, 9.0) == pytest.approx({"proxy": 0.6})


@pytest.mark.parametrize("topology", [OURS, PROXY, ours("two", replicas=2)], ids=lambda topology: topology.name)
def test_a_topology_is_the_shipped_deployment_on_other_ports(topology: Topology) -> None:
    shipped = deployment.read(profile.ROOT / "deploy.yaml").document.values
    result = relocated(shipped, topology, 3, Path("/scratch"), WITHOUT_DRAFTS)
    application = result["applications"][0]
    variables = application["runtime_env"]["env_vars"]
    assert result["controller_options"]["runtime_env"]["env_vars"] == variables
    assert result["http_options"]["port"] != shipped["http_options"]["port"]  # type: ignore[index]
    assert application["import_path"] == "serve_app.app:build"
    assert application["args"].get("replicas", {"min": 1})["min"] == topology.replicas
    assert application["args"]["engine"] == WITHOUT_DRAFTS["engine"]
    assert [name in variables for name in FAST_OPTIONS] == [topology is not PROXY] * 2
