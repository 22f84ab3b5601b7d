"""Which applications a Serve configuration file may have: the service, and a canary beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cli.check import CheckStatus
from serve_app.cli.pool_checks import canary_checks
from serve_app.config import deployment, fleet
from serve_app.config.hardware import NodeGpus
from serve_app.config.schema import ConfigError

TEXT = """\
applications:
  - name: step
    import_path: serve_app.app:build
    args: &args
      profile: cpu-demo
      engine: {kind: fake}
      replicas: {min: 4, max: 4}
  - name: step-canary
    route_prefix: null
    import_path: serve_app.canary:build
    args:
      <<: *args
      replicas: {min: 1, max: 1}
      canary: {share: 0.05}
"""
HEAD = [NodeGpus("head", None, 0, 8)]


def read(tmp_path: Path, text: str) -> deployment.Deployment:
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    return deployment.read(file)


def test_a_canary_stands_beside_the_service(tmp_path: Path) -> None:
    found = read(tmp_path, TEXT)
    assert found.application == "step"
    assert "canary" not in found.args.values
    assert found.canary_args is not None
    assert found.canary_args.values["replicas"] == {"min": 1, "max": 1}
    assert found.canary_args.values["profile"] == "cpu-demo"
    assert found.canary_args.where(("canary", "share")) == "deploy.yaml:14"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TEXT.replace("step-canary", "canary"), "deploy.yaml:8: name: the canary of `step` is found as `step-canary`"),
        (
            TEXT.replace("route_prefix: null", "route_prefix: /x"),
            "deploy.yaml:9: route_prefix: a canary has no",
        ),
        (
            TEXT.replace("canary:build", "app:build"),
            "deploy.yaml:1: applications: expected one application, and",
        ),
        ("applications: []\n", "deploy.yaml:1: applications: expected one application"),
    ],
)
def test_a_refusal_names_the_line_to_change(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("canary", "status", "told"),
    [
        ("canary: {share: 0.05}", CheckStatus.OK, "5% of the sessions for 1 of 5 engines"),
        ("canary: {share: 0.3}", CheckStatus.WARN, "30% of the sessions for 1 of 5 engines"),
        ("model: {served_name: other}\n      canary: {share: 0.1}", CheckStatus.FAIL, "it serves another name"),
        ("tracing: {}", CheckStatus.FAIL, "no block `canary`"),
    ],
)
def test_a_canary_is_checked_before_the_start(tmp_path: Path, canary: str, status: CheckStatus, told: str) -> None:
    found = read(tmp_path, TEXT.replace("canary: {share: 0.05}", canary))
    assert found.canary_args is not None
    (check,) = canary_checks(fleet.load(found.args, HEAD), fleet.load(found.canary_args, HEAD))
    assert (check.status, told in check.message) == (status, True), check
