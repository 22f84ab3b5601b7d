"""What a rehearsal starts, and what it refuses to start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from serve_app.__main__ import main
from serve_app.cli import checkpoint, config_checks, deploy_checks, pool_checks
from serve_app.cli.check import CheckStatus
from serve_app.cli.config_checks import layout_of, shape_of
from serve_app.config import deployment, fleet, memory
from serve_app.config.hardware import NodeGpus
from serve_app.config.memory import GB
from serve_app.config.profile import ROOT, load_config
from serve_app.config.schema import AppConfig
from serve_app.rehearse import measure, setup
from serve_app.rehearse.setup import Refused, choose, overrides
from tests.unit.rehearse_examples import MODEL, free_port, given, profile


@pytest.mark.parametrize(
    ("name", "node", "share", "expected"),
    [
        ("h100-x8", NodeGpus("here", "H100", 8), False, (False, 1)),
        ("h100-x8", NodeGpus("here", "H100", 8), True, (False, 8)),
        ("h100-x8", NodeGpus("here", "H100", 1), True, (False, 8)),
        ("h100-x4-fp8", NodeGpus("here", "H200", 1), True, (False, 4)),
        ("h100-x8", NodeGpus("here", None, 0), False, (True, 1)),
        ("h100-x8", NodeGpus("here", None, 0), True, (True, 1)),
        ("cpu-demo", NodeGpus("here", "H100", 8), False, (True, 1)),
    ],
)
def test_the_layout_a_share_of_it_or_the_demo_is_chosen(
    name: str, node: NodeGpus, share: bool, expected: tuple[bool, int]
) -> None:
    assert choose(profile(name), node, share=share) == expected


@pytest.mark.parametrize(
    ("config", "node", "message"),
    [
        (profile("h100-x8"), NodeGpus("here", "H100", 1), "needs 8 GPUs, and this machine has 1x H100; `--share`"),
        (profile("h200-x4", replicas={"min": 2, "max": 2}), NodeGpus("here", "H200", 4), "for each of 2 engines"),
        (profile("h100-x8"), NodeGpus("here", "A100", 8), "is for H100, and this machine has 8x A100"),
        (profile("cpu-demo", engine={"kind": "fake"}), NodeGpus("here", None, 0), "nothing to rehearse"),
        (
            profile("h100-x8", replicas={"nodes_per_replica": 2}),
            NodeGpus("here", "H100", 8),
            "spans 2 nodes, and this is one",
        ),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_with_the_alternative(
    config: AppConfig, node: NodeGpus, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        choose(config, node, share=False)


def test_a_share_runs_on_one_gpu_of_any_kind() -> None:
    laid_over = overrides(profile("h100-x8"), MODEL, NodeGpus("here", "H200", 1), is_demo=False, ranks=8)
    started = load_config({"profile": "h100-x8", **laid_over}, [])
    assert (started.replicas.gpus_per_replica, started.replicas.accelerator_type) == (1, "H200")
    assert started.engine.flags["max-num-seqs"] == profile("h100-x8").engine.flags["max-num-seqs"]


def test_the_real_models_small_files_are_used_if_they_are_in_the_cache(tmp_path: Path) -> None:
    hub = tmp_path / "models--stepfun-ai--Step-3.7-Flash" / "snapshots" / "abc"
    hub.mkdir(parents=True)
    config = profile("h100-x8", engine={"env": {"HF_HUB_CACHE": str(tmp_path)}})
    assert setup.own_files(config) is None
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (hub / name).write_text("{}")
    assert setup.own_files(config) == hub


def test_a_rehearsal_starts_the_users_deployment_with_another_model_and_host(tmp_path: Path) -> None:
    text = (ROOT / "deploy.yaml").read_text().replace("port: 8000", f"port: {free_port()}")
    (tmp_path / "deploy.yaml").write_text(
        text.replace("profile: auto", "profile: cpu-demo\n      ingress: {keep_alive_s: 3}")
    )
    before = deployment.read(tmp_path / "deploy.yaml")
    plan = setup.plan(before, given(tmp_path / "out", profile=None))
    after = deployment.read(plan.deploy)
    assert (after.host, after.port, after.controller_env) == ("127.0.0.1", before.port, before.controller_env)
    assert after.application == before.application
    assert plan.config.engine.flags["load-format"] == "dummy"
    assert plan.config.model.source == str(tmp_path / "out" / "model")
    assert checkpoint.read(plan.model).mtp_layers() == 3


@pytest.mark.parametrize(
    ("name", "node", "share"),
    [
        ("h100-x8", NodeGpus("here", "H100", 8, 104.0, gpu_bytes=memory.GPU_BYTES["H100"]), False),
        ("h100-x8", NodeGpus("here", "H100", 1, 16.0, gpu_bytes=memory.GPU_BYTES["H100"]), True),
        ("h100-x8-fp8", NodeGpus("here", "H100", 8, 104.0, gpu_bytes=memory.GPU_BYTES["H100"]), False),
        ("b200-x4", NodeGpus("here", "H200", 1, 16.0, gpu_bytes=memory.GPU_BYTES["H200"]), True),
    ],
)
def test_the_written_deployment_passes_the_checks_of_a_start(
    name: str, node: NodeGpus, share: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.config.hardware.this_machine", lambda: node)
    before = deployment.read(ROOT / "deploy.yaml")
    plan = setup.plan(before, given(tmp_path / "out", profile=name, share=share, port=free_port()))
    deploy = deployment.read(plan.deploy)
    found = [
        *config_checks.model_checks(plan.config),
        *config_checks.layout_checks(plan.config, [node]),
        *pool_checks.fit_checks(fleet.single(plan.config), [node]),
        *deploy_checks.serve_option_checks(deploy, plan.config),
    ]
    assert not [str(check) for check in found if check.status not in {CheckStatus.OK, CheckStatus.NOTE}]
    assert any("8 of this rank's experts" in said for said in plan.warnings) == share
    assert any("hf download stepfun-ai/" in said for said in plan.warnings)
    reckoned = measure.plan_memory(plan.config)
    shape, layout = shape_of(profile(name)), layout_of(profile(name))
    assert shape is not None
    assert layout is not None
    assert reckoned.planned_weights == pytest.approx(memory.memory_capacity(shape, layout).weights_bytes, abs=GB)


def test_a_used_port_an_unknown_profile_and_a_full_disk_are_reported_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["rehearse", "--profile", "cpu-demo", "--out", str(tmp_path / "out")]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main([*flags, "--port", str(port)]) == 1
        assert f"port {port} is held by pid" in capsys.readouterr().err
    assert main(["rehearse", "--profile", "h100-x9"]) == 1
    assert "did you mean `h100-x8`?" in capsys.readouterr().err
    monkeypatch.setattr("serve_app.config.machine.free_bytes", lambda _: 1000)
    assert main([*flags, "--port", str(free_port())]) == 1
    assert "--out" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert main(flags) == 1
    assert "Ray runs at 10.0.0.1:6379" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()
