"""A checkpoint of Step-3.7-Flash's shape without weights, for vLLM's `load-format: dummy`.

The weights' file is sparse: a safetensors header with every tensor's name and shape, and a hole of their size. The
checks before a start and `plan` read names and sizes; vLLM's dummy loader reads none of it. It takes no disk space.
Never load it: the weights would be zeros.

A rank's share has an eighth (or another part) of all tensors that are split over GPUs, and complete those that each GPU
holds completely. Each token uses as many experts as in the full model: decoding reads nearly all of them in either
case.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serve_app.config.profile import ROOT

DEMO = ROOT / "models" / "step-tiny"
FULL, SLIDING = "full_attention", "sliding_attention"
SMALL_SUFFIXES = frozenset({".json", ".jinja", ".py", ".model", ".txt"})
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST_SPARE_CHARACTER = 0x10000
"""Tokens that the demo's tokenizer lacks become single characters from here on, so that any sampled token is text."""

LAYERS, MTP_LAYERS, DENSE_LAYERS = 45, 3, 3
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

VLLMS_NAMES = {
    ".share_expert.": ".moe.share_expert.",
    ".self_attn.": ".mtp_block.self_attn.",
    ".mlp.": ".mtp_block.mlp.",
    ".shared_head.output": ".shared_head.head",
    ".attn.in_proj": ".attn.qkv_proj",
}
"""Modules that have another name in vLLM than in the checkpoint. The model class decides which of its names vLLM
uses."""


def write(target: Path, source: Path, config: Mapping[str, Any]) -> int:
    """Write the folder: `source`'s small files, this configuration, and a hole for its weights.

    Returns the bytes that the weights would have. Raises `OSError`, also where the file system has no sparse files.
    """
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in SMALL_SUFFIXES and file.name not in {"config.json", INDEX}:
            shutil.copyfile(file, target / file.name)
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    tokenizer = target / "tokenizer.json"
    if tokenizer.is_file():
        content = widened(json.loads(tokenizer.read_text(encoding="utf-8")), config["text_config"]["vocab_size"])
        tokenizer.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return _sparse_weights(target / WEIGHTS, config)


def read_config(source: Path) -> dict[str, Any]:
    """The configuration that a checkpoint came with."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return config


def full_config(demo: Mapping[str, Any], *, ranks: int = 1, fp8: bool = False) -> dict[str, Any]:
    """Step-3.7-Flash's `config.json`, or that of one rank's share of it: the demo's keys with the true sizes."""
    kinds = [FULL if i % 4 == 0 else SLIDING for i in range(LAYERS)] + [SLIDING] * MTP_LAYERS
    limits, shared_limits = [0.0] * len(kinds), [0.0] * len(kinds)
    limits[LAYERS - 2 : LAYERS] = [7.0, 7.0]
    shared_limits[LAYERS - 1] = 16.0
    heads = {"num_attention_groups": max(1, 8 // ranks), "head_dim": 128}
    sizes = {
        "hidden_size": 4096,
        "intermediate_size": 11264 // ranks,
        "num_attention_heads": 64 // ranks,
        **heads,
        "num_hidden_layers": LAYERS,
        "num_nextn_predict_layers": MTP_LAYERS,
        "vocab_size": 128_896 // ranks,
        "max_position_embeddings": 262_144,
        "max_seq_len": 262_144,
        "layer_types": kinds,
        "rope_theta": [5_000_000.0 if kind == FULL else 10_000.0 for kind in kinds],
        "partial_rotary_factors": [0.5 if kind == FULL else 1.0 for kind in kinds],
        "attention_other_setting": {"attention_type": SLIDING, "num_attention_heads": 96 // ranks, **heads},
        "sliding_window": 512,
        "moe_layers_enum": ",".join(map(str, range(DENSE_LAYERS, LAYERS))),
        "moe_num_experts": 288 // ranks,
        "moe_top_k": 8,
        "moe_intermediate_size": 1280,
        "share_expert_dim": 1280 // ranks,
        "moe_router_scaling_factor": 3.0,
        "swiglu_limits": limits,
        "swiglu_limits_shared": shared_limits,
    }
    # The tower has fewer layers of full width, so that its kernels are the true ones.
    vision = {"width": 1536, "layers": max(1, 47 // ranks), "heads": 16, "mlp_ratio": 8960 / 1536}
    config = {**demo, "hidden_size": 4096, "text_config": {**demo["text_config"], **sizes}}
    config["vision_config"] = {**demo["vision_config"], **vision}
    if fp8:
        config["quantization_config"] = {**FP8, "modules_to_not_convert": sorted(_not_experts(config))}
    return config


def _not_experts(config: Mapping[str, Any]) -> Iterator[str]:
    """Every module but the routed experts, by the checkpoint's name and by vLLM's."""
    for name, _ in tensors(config):
        if not _is_expert(name):
            module = re.sub(r"[._](weight|bias)$", "", name)
            yield module
            yield from (module.replace(theirs, vllms) for theirs, vllms in VLLMS_NAMES.items() if theirs in module)


def _is_expert(name: str) -> bool:
    return ".moe." in name and name.endswith("_proj.weight")


def widened(tokenizer: dict[str, Any], vocab: int) -> dict[str, Any]:
    """The tokenizer with a token for each id that a model of this vocabulary may sample."""
    words: dict[str, int] = tokenizer["model"]["vocab"]
    if isinstance(words, dict):
        first = 1 + max([*words.values(), *(token["id"] for token in tokenizer["added_tokens"])])
        words.update({chr(FIRST_SPARE_CHARACTER + i): i for i in range(first, vocab)})
    return tokenizer


def tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names as the hub's checkpoints have them, and shapes."""
    text = config["text_config"]
    hidden, vocab = text["hidden_size"], text["vocab_size"]
    yield from (("model.embed_tokens.weight", (vocab, hidden)), ("lm_head.weight", (vocab, hidden)))
    yield "model.norm.weight", (hidden,)
    for i, kind in enumerate(text["layer_types"]):
        at = f"model.layers.{i}"
        yield from _attention(at, hidden, text if kind == FULL else text["attention_other_setting"])
        yield from _feed_forward(at, i, text)
        if i >= text["num_hidden_layers"]:
            yield f"{at}.eh_proj.weight", (hidden, 2 * hidden)
            yield from ((f"{at}.{name}.weight", (hidden,)) for name in ("enorm", "hnorm", "shared_head.norm"))
            yield f"{at}.shared_head.output.weight", (vocab, hidden)
    yield from _vision(config["vision_config"], hidden)


def _attention(at: str, hidden: int, setting: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    heads, groups, size = setting["num_attention_heads"], setting["num_attention_groups"], setting["head_dim"]
    yield from ((f"{at}.{name}.weight", (hidden,)) for name in ("input_layernorm", "post_attention_layernorm"))
    yield from ((f"{at}.self_attn.{name}_norm.weight", (size,)) for name in "qk")
    yield f"{at}.self_attn.q_proj.weight", (heads * size, hidden)
    yield from ((f"{at}.self_attn.{name}_proj.weight", (groups * size, hidden)) for name in "kv")
    yield f"{at}.self_attn.o_proj.weight", (hidden, heads * size)
    yield f"{at}.self_attn.g_proj.weight", (heads, hidden)


def _feed_forward(at: str, layer: int, text: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width, block = text["hidden_size"], text["intermediate_size"], "mlp"
    if layer in set(map(int, text["moe_layers_enum"].split(","))):
        experts, wide = text["moe_num_experts"], text["moe_intermediate_size"]
        yield f"{at}.moe.gate.weight", (experts, hidden)
        yield f"{at}.moe.router_bias", (experts,)
        yield from ((f"{at}.moe.{name}_proj.weight", (experts, wide, hidden)) for name in ("gate", "up"))
        yield f"{at}.moe.down_proj.weight", (experts, hidden, wide)
        width, block = text["share_expert_dim"], "share_expert"
    yield from ((f"{at}.{block}.{name}_proj.weight", (width, hidden)) for name in ("gate", "up"))
    yield f"{at}.{block}.down_proj.weight", (hidden, width)


def _vision(vision: Mapping[str, Any], hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    wide, patch = vision["width"], vision["patch_size"]
    inner, places = round(wide * vision["mlp_ratio"]), (vision["image_size"] // patch) ** 2
    yield "vision_model.conv1.weight", (wide, 3, patch, patch)
    yield "vision_model.positional_embedding", (places, wide)
    yield from ((f"vision_model.ln_pre.{name}", (wide,)) for name in ("weight", "bias"))
    for i in range(vision["layers"]):
        at = f"vision_model.transformer.resblocks.{i}"
        yield from ((f"{at}.ln_{n}.{name}", (wide,)) for n in (1, 2) for name in ("weight", "bias"))
        yield from ((f"{at}.ls_{n}.gamma", (wide,)) for n in (1, 2))
        yield from ((f"{at}.attn.in_proj_weight", (3 * wide, wide)), (f"{at}.attn.in_proj_bias", (3 * wide,)))
        for name, out, into in (("attn.out_proj", wide, wide), ("mlp.c_fc", inner, wide), ("mlp.c_proj", wide, inner)):
            yield from ((f"{at}.{name}.weight", (out, into)), (f"{at}.{name}.bias", (out,)))
    for n in (1, 2):
        yield f"vision_model.vit_downsampler{n}.weight", (2 * n * wide, n * wide, 3, 3)
        yield f"vision_model.vit_downsampler{n}.bias", (2 * n * wide,)
    yield "vit_large_projector.weight", (hidden, 4 * wide)


def _sparse_weights(file: Path, config: Mapping[str, Any]) -> int:
    is_fp8 = "quantization_config" in config
    header: dict[str, object] = {}
    end = 0
    for name, shape in tensors(config):
        small = is_fp8 and _is_expert(name)
        size = math.prod(shape) * (1 if small else 2)
        kind = "F8_E4M3" if small else "BF16"
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(content)) + content)
        stream.truncate(8 + len(content) + end)
    if file.stat().st_blocks * 512 > len(content) + 1_000_000:
        file.unlink()
        raise OSError(f"{file.parent} is on a file system without sparse files")
    return end
