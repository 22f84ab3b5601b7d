"""The dummy model of a rehearsal has the real shape, and vLLM accepts it."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli import checkpoint
from serve_app.cli.config_checks import layout_of, shape_of
from serve_app.config import memory
from serve_app.config.hardware import NodeGpus
from serve_app.config.memory import GB, STEP_3P7_FLASH
from serve_app.config.profile import load_config
from serve_app.config.vllm_flags import engine_argv
from serve_app.rehearse import dummy_model
from serve_app.rehearse.setup import ACCEPTED, overrides
from tests.unit.rehearse_examples import DEMO, MODEL, ON_GPUS, parameters, profile


def test_the_dummy_model_has_the_tensors_of_a_real_checkpoint() -> None:
    with (dummy_model.DEMO / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    real = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    assert dict(dummy_model.tensors(DEMO)) == real


def test_the_full_shape_has_the_parameters_that_memory_planning_uses() -> None:
    assert parameters(dummy_model.full_config(DEMO)) * 2 == pytest.approx(STEP_3P7_FLASH.weights_bytes, rel=0.003)


def test_preflight_reads_the_real_shape_from_a_sparse_folder(tmp_path: Path) -> None:
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
def test_a_share_has_the_size_of_what_each_gpu_of_the_layout_holds(name: str, tmp_path: Path) -> None:
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


def test_every_token_that_the_model_may_sample_is_text(tmp_path: Path) -> None:
    import tokenizers

    dummy_model.write(tmp_path / "model", dummy_model.DEMO, dummy_model.full_config(DEMO, ranks=8))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 128_896 // 8
    assert all(len(tokenizer.decode([number])) == 1 for number in range(1024, 16_112, 97))
    before = tokenizers.Tokenizer.from_file(str(dummy_model.DEMO / "tokenizer.json"))
    assert tokenizer.encode("Hello, world!").ids == before.encode("Hello, world!").ids


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks"), [("h100-x8", 1), ("h100-x8", 8), ("b200-x4", 4), ("cpu-demo", 1)])
def test_vllm_accepts_the_dummy_model_with_the_flags_of_a_rehearsal(name: str, ranks: int, tmp_path: Path) -> None:
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


def test_forced_acceptance_has_the_fields_that_vllm_reads() -> None:
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
def test_vllm_quantises_only_the_routed_experts_of_an_fp8_model(module: str, kept: bool) -> None:
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config
    from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped
    from vllm.model_executor.models.step3p5 import Step3p5ForCausalLM
    from vllm.model_executor.models.step3p7 import Step3p7ForConditionalGeneration

    config = Fp8Config.from_config(dummy_model.full_config(DEMO, fp8=True)["quantization_config"])
    if module.startswith(("language_model", "vision_model")):  # the MTP layers are a model of their own, and not mapped
        config.apply_vllm_mapper(Step3p7ForConditionalGeneration.hf_to_vllm_mapper)
    assert is_layer_skipped(module, config.ignored_layers, Step3p5ForCausalLM.packed_modules_mapping) == kept
