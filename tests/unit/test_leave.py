"""`python -m serve_app leave`: what is still on a node that is about to go."""

from __future__ import annotations

import pytest

from serve_app.__main__ import main
from serve_app.cli.leave import Left, replicas_on

DETAILS = {
    "applications": {
        "step": {
            "deployments": {
                "engine": {
                    "replicas": [
                        {"replica_id": "a", "state": "PENDING_MIGRATION", "node_id": "n1"},
                        {"replica_id": "b", "state": "RUNNING", "node_id": "n2"},
                        {"replica_id": "c", "state": "STARTING", "node_id": None},
                    ]
                },
                "ingress": {"replicas": [{"replica_id": "i", "state": "STOPPING", "node_id": "n1"}]},
            }
        },
        "other": {"deployments": {}},
    }
}


def test_every_replica_of_the_node_counts_whatever_its_state() -> None:
    assert replicas_on("n1", DETAILS) == [Left("engine", "a", "PENDING_MIGRATION"), Left("ingress", "i", "STOPPING")]
    assert replicas_on("n3", DETAILS) == []
    assert replicas_on("n1", {}) == []


def test_without_a_ray_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    assert main(["leave", "--address", "no-port"]) == 1
    assert "error: no Ray at 'no-port'" in capsys.readouterr().out
