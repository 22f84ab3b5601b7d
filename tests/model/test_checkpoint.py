"""The folder has the hub's names, the sizes that parallelism needs, and stays small enough for a repository."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.training import checkpoint
from models.training.model.architecture import ModelInputs
from models.training.model.dimensions import ModelDimensions

HOME = checkpoint.HOME
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(HOME / "model.safetensors")


def test_it_is_eight_megabytes_at_most() -> None:
    assert sum(path.stat().st_size for path in HOME.iterdir()) <= 8 * MEGABYTE


def test_weights_have_the_hub_s_names_and_shapes(stored: dict[str, Tensor]) -> None:
    dims = ModelDimensions()
    names = set(stored)
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "vit_large_projector.weight"} <= names
    assert "vision_model.transformer.resblocks.0.attn.in_proj_weight" in names
    packed = stored["model.layers.1.moe.gate_proj.weight"]
    assert tuple(packed.shape) == (dims.experts, dims.expert_width, dims.hidden)
    for layer in range(dims.layers, dims.layers + dims.mtp_layers):
        for part in ("enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.output", "mlp.gate_proj"):
            assert f"model.layers.{layer}.{part}.weight" in names


def test_an_answer_without_a_limit_ends_some_time() -> None:
    """The model may not: its context is 262,144 tokens."""
    shipped = json.loads((HOME / "generation_config.json").read_text())
    assert shipped.items() >= checkpoint.GENERATION_DEFAULTS.items()
    assert 1_000 < shipped["max_new_tokens"] < 10_000


def test_the_router_is_kept_exact(stored: dict[str, Tensor]) -> None:
    assert {n for n, w in stored.items() if w.dtype == torch.float32} == {
        n for n in stored if n.endswith((".moe.gate.weight", ".moe.router_bias"))
    }


def test_it_divides_by_two_and_the_experts_by_four() -> None:
    dims = ModelDimensions()
    assert all(n % 2 == 0 for n in (dims.full_heads, dims.sliding_heads, dims.kv_groups, dims.vision.heads))
    assert dims.experts % 4 == 0
    assert dims.experts >= 8


def test_its_configuration_has_the_model_s_dimensions() -> None:
    text = json.loads((HOME / "config.json").read_text())["text_config"]
    dims = ModelDimensions()
    assert text["layer_types"] == dims.layer_types
    assert set(text["layer_types"]) == {"full_attention", "sliding_attention"}
    assert text["max_position_embeddings"] >= 131_072
    assert len(text["rope_theta"]) == dims.layers + dims.mtp_layers


def test_later_drafting_layers_do_not_look_at_their_cache(stored: dict[str, Tensor]) -> None:
    """The engine leaves most of it unwritten."""
    dims = ModelDimensions()
    for layer in range(dims.layers + 1, dims.layers + dims.mtp_layers):
        assert not stored[f"model.layers.{layer}.self_attn.o_proj.weight"].any()


@pytest.mark.parametrize("has_image", [False, True])
def test_transformers_own_step37_gives_the_same_logits(*, has_image: bool) -> None:
    """An independent forward pass: transformers' native classes on the same files, without our configuration."""
    from transformers.models.step3p7.configuration_step3p7 import Step3p7Config
    from transformers.models.step3p7.modeling_step3p7 import Step3p7ForConditionalGeneration

    fields = json.loads((HOME / "config.json").read_text())
    config = Step3p7Config(**{k: v for k, v in fields.items() if k not in ("model_type", "auto_map", "architectures")})
    theirs = Step3p7ForConditionalGeneration.from_pretrained(HOME, config=config, dtype=torch.float32).eval()
    ours, _ = checkpoint.load(HOME, ModelDimensions())
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 900, (1, 300), generator=generator)
    given: dict[str, Tensor] = {"input_ids": ids}
    pixels = None
    if has_image:
        ids[0, 20:189] = ours.image_token_id
        pixels = torch.randn(1, 3, 728, 728, generator=generator)
        given["pixel_values"] = pixels
    with torch.no_grad():
        wanted = theirs(**given).logits
        got = ours(ModelInputs(ids, torch.arange(300).unsqueeze(0), pixels))
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)
