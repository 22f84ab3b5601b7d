"""A rehearsal: the dummy model is the true shape, what cannot be rehearsed is refused, and every miss has a remedy."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import socket
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer
from serve_app.__main__ import main
from serve_app.cli import checkpoint, config_checks
from serve_app.cli.check import CheckStatus
from serve_app.cli.config_checks import layout_of, shape_of
from serve_app.config import deployment, memory
from serve_app.config.hardware import NodeGpus
from serve_app.config.memory import GB, STEP_3P7_FLASH
from serve_app.config.profile import ROOT, load_config, profile_names
from serve_app.config.schema import AppConfig
from serve_app.config.vllm_flags import engine_argv
from serve_app.rehearse import dummy_model, facts, measure, page, setup, verdict
from serve_app.rehearse.facts import GpuMemory, KillResult, LoadResult, Phase, RehearsalFacts, TrialRequest
from serve_app.rehearse.service import NotStarted, Service, run_tool
from serve_app.rehearse.setup import ACCEPTED, Refused, choose, overrides
from serve_app.rehearse.verdict import Level

DEMO = dummy_model.read_config(dummy_model.DEMO)
ON_GPUS = [name for name in profile_names() if load_config({"profile": name}, []).replicas.gpus_per_replica]
MODEL = Path("/somewhere/model")


def profile(name: str, **more: object) -> AppConfig:
    return load_config({"profile": name, **more}, [])


def parameters(config: dict[str, Any]) -> int:
    return sum(math.prod(shape) for _, shape in dummy_model.tensors(config))


# ---- the dummy model -------------------------------------------------------------------------------------------------


def test_its_tensors_are_those_of_a_real_checkpoint() -> None:
    with (dummy_model.DEMO / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    real = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    assert dict(dummy_model.tensors(DEMO)) == real


def test_the_full_shape_has_the_parameters_that_memory_reckons_with() -> None:
    assert parameters(dummy_model.full_config(DEMO)) * 2 == pytest.approx(STEP_3P7_FLASH.weights_bytes, rel=0.003)


def test_the_checks_before_a_start_read_the_true_shape_from_a_folder_that_takes_no_disk(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    size = dummy_model.write(folder, dummy_model.DEMO, dummy_model.full_config(DEMO))
    found = checkpoint.read(folder)
    assert found.shape() == replace(
        STEP_3P7_FLASH, weights_bytes=found.weights_bytes, expert_bytes=found.shape().expert_bytes
    )
    assert found.shape().expert_bytes == STEP_3P7_FLASH.expert_bytes
    assert found.mtp_layers() == 3
    assert size == pytest.approx(STEP_3P7_FLASH.weights_bytes, rel=0.003)
    assert sum(file.stat().st_blocks * 512 for file in folder.iterdir()) < 20_000_000


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_share_weighs_what_each_gpu_of_the_layout_holds(name: str, tmp_path: Path) -> None:
    config = profile(name)
    ranks = config.replicas.gpus_per_replica
    fp8 = name.endswith("fp8")
    dummy_model.write(tmp_path / "model", dummy_model.DEMO, dummy_model.full_config(DEMO, ranks=ranks, fp8=fp8))
    shape, layout = shape_of(config), layout_of(config)
    assert shape is not None
    assert layout is not None
    share = checkpoint.read(tmp_path / "model").shape()
    alone = memory.memory_capacity(share, replace(layout, tensor_parallel=1))
    assert alone.weights_bytes == pytest.approx(memory.memory_capacity(shape, layout).weights_bytes, abs=GB)
    assert alone.tokens() == pytest.approx(memory.memory_capacity(shape, layout).tokens(), rel=0.1)
    assert not [one for one in memory.layout_issues(share, replace(layout, tensor_parallel=1)) if one.fatal]


def test_whatever_the_model_samples_is_text(tmp_path: Path) -> None:
    import tokenizers

    dummy_model.write(tmp_path / "model", dummy_model.DEMO, dummy_model.full_config(DEMO, ranks=8))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 128_896 // 8
    assert all(len(tokenizer.decode([number])) == 1 for number in range(1024, 16_112, 97))
    before = tokenizers.Tokenizer.from_file(str(dummy_model.DEMO / "tokenizer.json"))
    assert tokenizer.encode("Hello, world!").ids == before.encode("Hello, world!").ids


@pytest.mark.parametrize(("name", "ranks"), [("h100-x8", 1), ("h100-x8", 8), ("b200-x4", 4), ("cpu-demo", 1)])
def test_vllm_takes_the_dummy_model_with_the_flags_of_a_rehearsal(name: str, ranks: int, tmp_path: Path) -> None:
    from serve_app.config import vllm_flags

    wanted, is_demo, node = profile(name), name == "cpu-demo", NodeGpus("here", "H100", 8)
    config = DEMO if is_demo else dummy_model.full_config(DEMO, ranks=ranks)
    dummy_model.write(tmp_path / "model", dummy_model.DEMO, config)
    laid_over = overrides(wanted, tmp_path / "model", node, is_demo=is_demo, ranks=ranks)
    started = load_config({"profile": name, **laid_over}, [])
    parsed = vllm_flags.parse(engine_argv(started), vllm_flags.serve_parser())
    assert parsed.load_format == "dummy"
    assert parsed.tensor_parallel_size == (wanted.engine.flags.get("tensor-parallel-size", 1) if ranks == 1 else 1)
    vllm_flags.check_model(parsed)
    if not is_demo:
        assert parsed.speculative_config["method"] == "mtp"
        assert parsed.speculative_config["synthetic_acceptance_length"] == ACCEPTED


def test_forced_acceptance_is_spelled_as_vllm_reads_it() -> None:
    from vllm.config import SpeculativeConfig

    forced = overrides(profile("h100-x8"), MODEL, NodeGpus("here", "H100", 8), is_demo=False, ranks=1)
    flags: Any = forced["engine"]
    spoken = flags["flags"]["speculative-config"]
    assert set(spoken) <= set(SpeculativeConfig.__dataclass_fields__)
    rates = SpeculativeConfig._resolve_synthetic_acceptance_rates(3, None, spoken["synthetic_acceptance_length"])
    assert 1 + sum(rates) == pytest.approx(ACCEPTED)


@pytest.mark.parametrize(
    ("module", "kept"),
    [
        ("language_model.model.layers.0.self_attn.qkv_proj", True),
        ("language_model.model.layers.5.self_attn.g_proj", True),
        ("language_model.model.layers.0.mlp.gate_up_proj", True),
        ("language_model.model.layers.5.moe.share_expert.gate_up_proj", True),
        ("language_model.model.layers.5.moe.gate", True),
        ("language_model.model.layers.5.moe.experts", False),
        ("language_model.lm_head", True),
        ("vision_model.transformer.resblocks.3.attn.qkv_proj", True),
        ("vision_model.transformer.resblocks.3.mlp.fc1", True),
        ("model.layers.45.mtp_block.self_attn.o_proj", True),
        ("model.layers.45.mtp_block.mlp.down_proj", True),
        ("model.layers.45.shared_head.head", True),
        ("model.layers.45.eh_proj", True),
    ],
)
def test_of_an_fp8_model_vllm_quantises_the_routed_experts_alone(module: str, kept: bool) -> None:
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config
    from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped
    from vllm.model_executor.models.step3p5 import Step3p5ForCausalLM
    from vllm.model_executor.models.step3p7 import Step3p7ForConditionalGeneration

    config = Fp8Config.from_config(dummy_model.full_config(DEMO, fp8=True)["quantization_config"])
    if module.startswith(("language_model", "vision_model")):  # the MTP layers are a model of their own, and not mapped
        config.apply_vllm_mapper(Step3p7ForConditionalGeneration.hf_to_vllm_mapper)
    assert is_layer_skipped(module, config.ignored_layers, Step3p5ForCausalLM.packed_modules_mapping) == kept


# ---- what is rehearsed -----------------------------------------------------------------------------------------------


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
def test_the_layout_one_share_of_it_or_the_demo(
    name: str, node: NodeGpus, share: bool, expected: tuple[bool, int]
) -> None:
    assert choose(profile(name), node, share=share) == expected


@pytest.mark.parametrize(
    ("config", "node", "said"),
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
def test_what_cannot_be_rehearsed_is_refused_with_what_can(config: AppConfig, node: NodeGpus, said: str) -> None:
    with pytest.raises(Refused, match=said):
        choose(config, node, share=False)


def test_a_share_runs_on_one_gpu_of_whatever_kind_is_here() -> None:
    laid_over = overrides(profile("h100-x8"), MODEL, NodeGpus("here", "H200", 1), is_demo=False, ranks=8)
    started = load_config({"profile": "h100-x8", **laid_over}, [])
    assert (started.replicas.gpus_per_replica, started.replicas.accelerator_type) == (1, "H200")
    assert started.engine.flags["max-num-seqs"] == profile("h100-x8").engine.flags["max-num-seqs"]


def test_the_real_models_small_files_are_taken_where_they_are_here(tmp_path: Path) -> None:
    hub = tmp_path / "models--stepfun-ai--Step-3.7-Flash" / "snapshots" / "abc"
    hub.mkdir(parents=True)
    config = profile("h100-x8", engine={"env": {"HF_HUB_CACHE": str(tmp_path)}})
    assert setup.own_files(config) is None
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (hub / name).write_text("{}")
    assert setup.own_files(config) == hub


def given(out: Path, **more: object) -> argparse.Namespace:
    return argparse.Namespace(**{"profile": "h100-x8", "share": False, "out": out, "port": None, "load_s": 1.0, **more})


def test_the_service_of_a_rehearsal_is_the_users_own_but_for_the_model_and_the_door(tmp_path: Path) -> None:
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
def test_what_is_written_passes_the_checks_of_a_start_on_such_a_machine(
    name: str, node: NodeGpus, share: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.config.hardware.this_machine", lambda: node)
    before = deployment.read(ROOT / "deploy.yaml")
    plan = setup.plan(before, given(tmp_path / "out", profile=name, share=share, port=free_port()))
    deploy = deployment.read(plan.deploy)
    found = [
        *config_checks.model_checks(plan.config),
        *config_checks.layout_checks(plan.config, [node]),
        *config_checks.fit_checks(plan.config, [node]),
        *config_checks.serve_option_checks(deploy, plan.config),
    ]
    assert not [str(check) for check in found if check.status not in {CheckStatus.OK, CheckStatus.NOTE}]
    assert any("8 of this rank's experts" in said for said in plan.warnings) == share
    assert any("hf download stepfun-ai/" in said for said in plan.warnings)
    reckoned = measure.plan_memory(plan.config)
    shape, layout = shape_of(profile(name)), layout_of(profile(name))
    assert shape is not None
    assert layout is not None
    assert reckoned.planned_weights == pytest.approx(memory.memory_capacity(shape, layout).weights_bytes, abs=GB)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_a_held_port_an_unknown_profile_and_a_full_disk_are_said_before_anything_starts(
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


# ---- the service, by a stand-in --------------------------------------------------------------------------------------

STAND_IN = """
import signal, sys, time
# As `serve` does: it is there to be ended by it, whatever the shell that started us has done to the signal.
signal.signal(signal.SIGINT, lambda *_: sys.exit(1 if sys.argv[1] == "hangs" else 0))
print("Checks before anything starts:\\n\\nStarting (a new local Ray); log\\n", flush=True)
for line in ("engine   loading vLLM (0 s)", "engine   loading vLLM (10 s)", "engine   compiling (20 s)"):
    print("   1.0 s  " + line, flush=True)
if sys.argv[1] == "fails":
    sys.exit("FAILED: out of memory")
if sys.argv[1] == "hangs":
    signal.pause()
print("   3.0 s  answers\\nServing\\n  Ray dashboard  http://127.0.0.1:8265   (asks)\\n", flush=True)
signal.pause()
"""


def stand_in(tmp_path: Path, how: str) -> Service:
    return Service([sys.executable, "-c", STAND_IN, how], tmp_path / "serve.log", lambda _: None)


def test_a_start_is_followed_to_its_answer_and_ended(tmp_path: Path) -> None:
    with stand_in(tmp_path, "works") as service:
        service.until_it_answers(30)
        assert service.dashboard == "http://127.0.0.1:8265"
    assert [phase.name for phase in facts.phases(service.lines)] == [
        "checks",
        "Ray and Serve",
        "loading vLLM",
        "compiling",
    ]
    assert service.stop_s is not None
    assert service.left_over == []


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with stand_in(tmp_path, "fails") as service, pytest.raises(NotStarted, match="out of memory"):
        service.until_it_answers(30)


def test_a_start_that_takes_too_long_says_how_far_it_came(tmp_path: Path) -> None:
    with stand_in(tmp_path, "hangs") as service, pytest.raises(NotStarted, match=r"not in 3 s; last: .*compiling"):
        service.until_it_answers(3)


def test_a_tool_that_hangs_is_ended() -> None:
    said: list[str] = []
    status, _ = run_tool(
        ["timeit", "-n", "1", "-r", "1", "import signal; print('on', flush=True); signal.pause()"], 2, said.append
    )
    assert (status, said) == (-9, ["  on"])


def planned(tmp_path: Path, port: int) -> setup.RehearsalPlan:
    config = profile("cpu-demo", model={"source": str(dummy_model.DEMO), "served_name": "mock"})
    deploy = tmp_path / "deploy.yaml"
    return setup.RehearsalPlan("cpu-demo", config, 1, True, dummy_model.DEMO, deploy, port, dummy_model.DEMO, ())


async def test_the_load_is_the_load_tests_and_read_from_its_file(tmp_path: Path) -> None:
    async with MockServer(MockConfig(first_s=0.01, gap_s=0.001)) as server:
        port = int(server.url.rpartition(":")[2])
        said: list[str] = []
        found = await asyncio.to_thread(measure.load, planned(tmp_path, port), "", 1.0, tmp_path, said.append)
    assert isinstance(found, LoadResult), found
    assert found.requests >= 16
    assert (found.failed, found.published_rate) == (0, None)
    assert found.output_rate > 0
    assert (tmp_path / "load.html").is_file()
    nobody = await asyncio.to_thread(measure.load, planned(tmp_path, free_port()), "", 1.0, tmp_path, said.append)
    assert isinstance(nobody, str)
    assert "loadtest:" in nobody


async def test_requests_that_nobody_answers_are_wrong_and_say_so(tmp_path: Path) -> None:
    found = measure.three_requests(planned(tmp_path, free_port()))
    assert [request.ok for request in found] == [False] * 3
    assert all("Connect" in request.said for request in found)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, KillResult(4, 4, 21.5, 30.0)),
        ({"gap_across_fault": None, "recovery_s": []}, KillResult(4, 4, None, None)),
        ({"finished": 3, "streams": [{"error": "cut"}, {"error": ""}]}, KillResult(4, 3, 21.5, 30.0, "cut")),
        ({"faults": [{"error": "gone"}]}, KillResult(4, 4, 21.5, 30.0, "the engine core was not killed")),
        ({"problems": ["the fleet has not recovered"]}, KillResult(4, 4, 21.5, 30.0, "the fleet has not recovered")),
    ],
)
def test_a_kill_is_what_chaos_saw(
    told: dict[str, Any], expected: KillResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        "finished": 4, "faults": [{"error": ""}], "streams": [{"error": ""}] * 4, "problems": [],
        "gap_across_fault": {"median_s": 20.0, "worst_s": 21.5, "count": 4}, "recovery_s": [30.0], **told,
    }  # fmt: skip

    def chaos(arguments: list[str], _limit_s: float, _say: object) -> tuple[int, str]:
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(whole))
        return 1, "FAILED"  # answers differ where acceptance is forced

    monkeypatch.setattr("serve_app.rehearse.measure.run_tool", chaos)
    assert measure.kill(planned(tmp_path, 1), "http://127.0.0.1:8265", tmp_path, print) == expected


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_phases_last_until_the_next_and_what_is_said_again_is_the_same() -> None:
    lines = [
        (0.5, "Checks before anything starts:"), (5.0, "Starting (a new local Ray); the whole log is in x"),
        (15.0, "  10.0 s  engine   loading vLLM (0 s)"), (25.0, "  20.0 s  engine   loading vLLM (10 s)"),
        (26.0, "  21.0 s  engine   updating (1 starting)"), (30.0, "  25.0 s  engine   compiling (15 s)"),
        (80.0, "  75.0 s  all      running"), (81.0, "  76.0 s  answers"),
    ]  # fmt: skip
    found = [(phase.name, phase.seconds) for phase in facts.phases(lines)]
    assert found == [("checks", 5.0), ("Ray and Serve", 10.0), ("loading vLLM", 15.0), ("compiling", 51.0)]
    assert facts.phases([]) == [Phase("checks", 0.0)]


def test_vllms_sizes_are_read_off_its_log() -> None:
    log = """(EngineCore pid=1) (Worker_TP0 pid=2) INFO [x.py:1] Model loading took 47.2 GiB memory and 15.5 seconds
(Worker_TP1 pid=3) INFO [x.py:1] Model loading took 47.4 GiB memory and 15.1 seconds
INFO [gpu_worker.py:1] Available KV cache memory: 18.25 GiB
INFO [x.py:1] GPU KV cache size: 2,480,128 tokens, Maximum concurrency for 262,144 tokens per request: 9.46x
INFO [x.py:1] Graph capturing finished in 41 secs, took 1.88 GiB
INFO [core.py:1] init engine (profile, create kv cache, warmup model) took 131.02 s (compilation: 60.11 s)"""
    found = facts.vllm_says(log.splitlines())
    assert found["weights_bytes"] == 47.4 * 1024**3
    assert (found["cache_tokens"], found["concurrency"], found["longest_tokens"]) == (2_480_128, 9.46, 262_144)
    assert (found["graphs_s"], found["init_s"], found["loading_s"]) == (41, 131.02, 15.5)


def good(**changes: Any) -> RehearsalFacts:
    found = RehearsalFacts(
        profile="h100-x8", is_demo=False, ranks=1, machine="8x H100", when="today", answered=True, stop_s=12.0,
        phases=[Phase("checks", 10.0), Phase("compiling", 90.0)],
        memory=GpuMemory(
            planned_weights=50.6 * GB, planned_cache=21.0 * GB, planned_tokens=2_700_000, gpu=85 * GB,
            used_before=GB, used_loaded=78 * GB, used_after=GB,
            vllm={"weights_bytes": 50.9 * GB, "cache_bytes": 20.0 * GB, "cache_tokens": 2.6e6, "concurrency": 9.0},
        ),
        requests=[TrialRequest(kind, True, 1.0, "fine") for kind in ("text", "image", "tool")],
        load=LoadResult(64, 0, 120.0, 1200.0, 3000.0, 35000.0, 24.0, 2.8, 1245.0),
        kill=KillResult(4, 4, 20.0, 25.0),
    )  # fmt: skip
    return replace(found, **changes)


def levels(found: RehearsalFacts) -> dict[str, tuple[Level, str]]:
    return {one.what: (one.level, one.change) for one in verdict.judge(found, ACCEPTED)}


def test_a_good_rehearsal_has_nothing_to_change() -> None:
    found = verdict.judge(good(), ACCEPTED)
    assert {one.level for one in found} == {Level.OK}
    assert {one.change for one in found} == {""}
    assert verdict.summary(good(), found) == (True, "READY: this machine can serve h100-x8")
    share = replace(good(), ranks=8)
    assert "one GPU's share" in verdict.summary(share, verdict.judge(share, ACCEPTED))[1]
    demo = replace(good(), is_demo=True)
    assert "nothing was shown of GPUs" in verdict.summary(demo, verdict.judge(demo, ACCEPTED))[1]


def with_memory(**changes: Any) -> RehearsalFacts:
    return good(memory=replace(good().memory, **changes))


def with_vllm(**changes: float) -> RehearsalFacts:
    return with_memory(vllm={**good().memory.vllm, **changes})


def with_load(**changes: Any) -> RehearsalFacts:
    load = good().load
    assert load is not None
    return good(load=replace(load, **changes))


@pytest.mark.parametrize(
    ("found", "what", "level", "change"),
    [
        (good(answered=False, start_error="FAIL  port 8000 taken"), "start", Level.MISS, "marked FAIL"),
        (good(answered=False, start_error="CUDA out of memory"), "start", Level.MISS, "gpu-memory-utilization"),
        (good(answered=False, start_error="NCCL error"), "start", Level.MISS, "NCCL_DEBUG"),
        (good(answered=False, start_error="?"), "start", Level.MISS, "service.log"),
        (good(phases=[Phase("compiling", 2000.0)]), "start", Level.NOTE, "compile_cache_dir"),
        (with_vllm(weights_bytes=55.0 * GB), "weights", Level.MISS, "report"),
        (with_vllm(weights_bytes=40.0 * GB), "weights", Level.NOTE, "better"),
        (with_vllm(cache_bytes=15.0 * GB), "KV cache", Level.MISS, "max-num-batched-tokens"),
        (with_vllm(cache_bytes=30.0 * GB), "KV cache", Level.NOTE, "better"),
        (with_vllm(concurrency=0.6), "KV cache size", Level.MISS, "max-model-len"),
        (with_memory(vllm={}), "memory", Level.NOTE, "service.log"),
        (with_memory(used_loaded=84 * GB), "GPU memory", Level.MISS, "lower engine.flags.gpu-memory-utilization"),
        (with_memory(used_after=20 * GB), "stop", Level.MISS, "nvidia-smi"),
        (good(left_over=["VLLM::EngineCore"]), "stop", Level.MISS, "report"),
        (good(requests=[TrialRequest("text", False, 1.0, "HTTP 500")]), "text request", Level.MISS, "service.log"),
        (
            good(requests=[*good().requests[:2], TrialRequest("tool", True, 9.0, "noise", is_proven=False)]),
            "tool request",
            Level.NOTE,
            "weights",
        ),
        (good(requests=[]), "image request", Level.MISS, "service.log"),
        (good(load=None, load_error="exit 2"), "load", Level.MISS, "load test"),
        (with_load(failed=3), "load", Level.MISS, "load.html"),
        (with_load(output_rate=300.0), "load", Level.NOTE, "preflight"),
        (with_load(tokens_per_step=1.2), "acceptance", Level.NOTE, "acceptance"),
        (good(kill=None), "killed engine", Level.MISS, "service.log"),
        (good(kill=KillResult(4, 3, 20.0, 25.0)), "killed engine", Level.MISS, "kill.json"),
        (
            good(kill=KillResult(4, 4, None, None, "the engine core was not killed")),
            "killed engine",
            Level.MISS,
            "kill.json",
        ),
        (good(kill=KillResult(4, 4, 70.0, 75.0)), "killed engine", Level.NOTE, "replicas.min: 2"),
    ],
)
def test_whatever_is_not_as_planned_is_said_with_what_to_change(
    found: RehearsalFacts, what: str, level: Level, change: str
) -> None:
    assert levels(found)[what][0] is level
    assert change in levels(found)[what][1]
    ready, said = verdict.summary(found, verdict.judge(found, ACCEPTED))
    assert ready == (level is not Level.MISS)
    assert ready or what in said


def test_an_interrupted_rehearsal_is_neither_ready_nor_wrong() -> None:
    found = good(interrupted=True, requests=[], load=None, kill=None)
    assert verdict.summary(found, verdict.judge(found, ACCEPTED)) == (False, "INTERRUPTED: nothing wrong so far")
    early = replace(found, answered=False, phases=[])
    assert Level.MISS not in {one.level for one in verdict.judge(early, ACCEPTED)}


@pytest.mark.parametrize("found", [good(), good(answered=False, phases=[], load=None, kill=None, memory=GpuMemory())])
def test_the_page_shows_all_that_is_known_and_no_more(found: RehearsalFacts) -> None:
    hostile = replace(found, warnings=("<script>alert(1)</script>",))
    findings = verdict.judge(hostile, ACCEPTED)
    text = page.as_html(hostile, findings, verdict.summary(hostile, findings)[1], has_load_page=found.load is not None)
    assert "<script" not in text
    assert all(one.what in text for one in findings)
    assert ("load.html" in text) == (found.load is not None)
    assert ("Engine killed" in text) == (found.kill is not None)
    assert text.count("<section") == text.count("</section>")
