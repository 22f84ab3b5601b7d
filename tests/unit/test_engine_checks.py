"""What the checks say of options that only a replica reads, of objectives without effect, and of unknown GPUs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from serve_app.cli import engine_checks, pool_checks, preflight
from serve_app.cli.check import Check, CheckStatus
from serve_app.config import fleet
from serve_app.config.fleet import FleetConfig
from serve_app.config.hardware import NodeGpus
from serve_app.config.yaml_lines import parse

NODES = [NodeGpus("a", "H100", 8, 64)]


def read(text: str) -> FleetConfig:
    return fleet.load(parse(text, "deploy.yaml"), NODES)


def of_engine(text: str) -> list[Check]:
    return list(engine_checks.engine_checks(read(text).ingress))


def words(checks: Iterable[Check]) -> str:
    return "\n".join(map(str, checks))


@pytest.mark.parametrize(
    ("options", "told"), [("{gapp_s: 1}", "a fake engine has no gapp_s"), ("{gap_s: 20ms}", "gap_s")]
)
def test_options_that_no_fake_engine_has_are_refused_before_the_start(options: str, told: str) -> None:
    (check,) = of_engine(f"profile: cpu-demo\nengine: {{kind: fake, fake: {options}}}\n")
    assert check.status is CheckStatus.FAIL
    assert told in check.message


def test_options_that_a_fake_engine_has_pass() -> None:
    assert of_engine("profile: cpu-demo\nengine: {kind: fake, fake: {gap_s: 0.02}}\n") == []


def test_an_unknown_gpu_is_warned_of_with_the_nearest_name() -> None:
    (check,) = of_engine("profile: h100-x8\nreplicas: {accelerator_type: H100-80G, cluster_grows: true}\n")
    assert check.status is CheckStatus.WARN
    assert "an engine waits for ever" in check.message
    assert of_engine("profile: h100-x8\nreplicas: {accelerator_type: H20, cluster_grows: true}\n") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slo: {ttft_p95_s: 3}\n", "nothing to scale, replicas.min = max = 1"),
        ("slo: {ttft_p95_s: 3}\nreplicas: {max: 3, gpu_budget: 8}\n", "what gpu_budget (8) allows"),
        ("slo: {ttft_p95_s: 3}\nreplicas: {max: 2}\n", ""),
        ("", ""),
    ],
)
def test_an_objective_without_engines_to_add_is_warned_of(text: str, told: str) -> None:
    said = words(engine_checks.slo_checks(read(f"profile: h100-x8\n{text}")))
    assert told in said if told else said == ""


def test_replicas_of_the_args_that_do_not_fit_are_told_as_the_args() -> None:
    ours = read("profile: h100-x8\nreplicas: {min: 3, max: 3}\n")
    assert "change `replicas` in the args of deploy.yaml" in words(pool_checks.fit_checks(ours, NODES))
    theirs = words(pool_checks.fit_checks(read("profile: h100-x8\n"), []))
    assert "change configs/h100-x8.yaml:" in theirs


def test_a_plain_serve_run_logs_what_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    checks = engine_checks.slo_checks(read("profile: h100-x8\nslo: {ttft_p95_s: 3}\n"))
    preflight.log_warnings([Check(CheckStatus.OK, "x", "y"), *checks])
    (told,) = caplog.messages
    assert told.startswith("check_warned slo: nothing to scale, replicas.min = max = 1")
