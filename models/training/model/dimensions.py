"""Sizes of the demo model, and the `config.json` that states them with the keys of the hub's Step-3.7 checkpoints."""

from dataclasses import dataclass

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class VisionDimensions:
    """Sizes of the perception encoder.

    Image and patch size are the real model's: vLLM's processor derives the number of image tokens from them.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0
    patch_size: int = 14
    image_size: int = 728
    layer_scale: float = 0.1


@dataclass(frozen=True)
class ModelDimensions:
    """Sizes of the text model.

    Heads and KV groups are divisible by 2 for tensor parallelism, experts by 4 for expert parallelism.
    """

    vocab: int = 1024
    hidden: int = 128
    head_dim: int = 64
    full_heads: int = 4
    sliding_heads: int = 6
    kv_groups: int = 2
    dense_width: int = 384
    experts: int = 8
    experts_per_token: int = 2
    expert_width: int = 64
    shared_width: int = 128
    routed_scale: float = 2.0
    layers: int = 4
    mtp_layers: int = 3
    window: int = 128
    norm_eps: float = 1e-5
    context: int = 262_144
    full_theta: float = 5_000_000.0
    sliding_theta: float = 10_000.0
    vision: VisionDimensions = VisionDimensions()

    @property
    def layer_types(self) -> list[str]:
        """Attention type of every layer: sliding and full alternate, MTP layers are sliding, as in the real model."""
        trunk = [SLIDING if i % 2 == 0 else FULL for i in range(self.layers)]
        return trunk + [SLIDING] * self.mtp_layers

    @property
    def moe_layers(self) -> list[int]:
        """Layers with experts. The first layer and the MTP layers are dense: vLLM rejects a sparse MTP layer."""
        return list(range(1, self.layers))

    def heads(self, layer: int) -> int:
        return self.full_heads if self.layer_types[layer] == FULL else self.sliding_heads

    def theta(self, layer: int) -> float:
        return self.full_theta if self.layer_types[layer] == FULL else self.sliding_theta

    def rotary_fraction(self, layer: int) -> float:
        """Fraction of a head's channels that are rotated. Full layers leave half unrotated, so it ignores distance."""
        return 0.5 if self.layer_types[layer] == FULL else 1.0


def hub_config(dims: ModelDimensions, token_ids: dict[str, int]) -> dict[str, object]:
    """Content of `config.json`. `token_ids` must have `<|im_end|>`, `<|endoftext|>` and `<im_patch>`."""
    all_layers = range(dims.layers + dims.mtp_layers)
    eos = [token_ids["<|im_end|>"], token_ids["<|endoftext|>"]]
    text: dict[str, object] = {
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": "step3p5",
        "hidden_size": dims.hidden,
        "intermediate_size": dims.dense_width,
        "num_attention_heads": dims.full_heads,
        "num_attention_groups": dims.kv_groups,
        "head_dim": dims.head_dim,
        "num_hidden_layers": dims.layers,
        "num_nextn_predict_layers": dims.mtp_layers,
        "vocab_size": dims.vocab,
        "rms_norm_eps": dims.norm_eps,
        "max_position_embeddings": dims.context,
        "max_seq_len": dims.context,
        "layer_types": dims.layer_types,
        "rope_theta": [dims.theta(i) for i in all_layers],
        "partial_rotary_factors": [dims.rotary_fraction(i) for i in all_layers],
        "attention_other_setting": {
            "attention_type": SLIDING,
            "num_attention_heads": dims.sliding_heads,
            "num_attention_groups": dims.kv_groups,
            "head_dim": dims.head_dim,
        },
        "sliding_window": dims.window,
        "att_impl_type": "GQA",
        "use_head_wise_attn_gate": True,
        "use_moe": True,
        "moe_layers_enum": ",".join(map(str, dims.moe_layers)),
        "moe_num_experts": dims.experts,
        "moe_top_k": dims.experts_per_token,
        "moe_intermediate_size": dims.expert_width,
        "share_expert_dim": dims.shared_width,
        "norm_expert_weight": True,
        "moe_router_activation": "sigmoid",
        "moe_router_scaling_factor": dims.routed_scale,
        "use_moe_router_bias": True,
        "need_fp32_gate": True,
        "tie_word_embeddings": False,
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": eos,
        "torch_dtype": "bfloat16",
    }
    vision = dims.vision
    return {
        "architectures": ["Step3p7ForConditionalGeneration"],
        "model_type": "step3p7",
        "auto_map": {"AutoConfig": "configuration_step3p7.Step3p7Config"},
        "hidden_size": dims.hidden,
        "projector_bias": False,
        "image_token_id": token_ids["<im_patch>"],
        "understand_projector_stride": 2,
        "image_token_len": (vision.image_size // vision.patch_size // 4) ** 2,
        "tie_word_embeddings": False,
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": eos,
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": {
            "model_type": "perception_encoder",
            "width": vision.width,
            "layers": vision.layers,
            "heads": vision.heads,
            "mlp_ratio": vision.mlp_ratio,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "quick_gelu",
            "ls_init_value": vision.layer_scale,
            "output_dim": None,
            "use_cls_token": False,
            "use_abs_posemb": True,
            "use_rope2d": True,
            "use_ln_pre": True,
            "use_ln_post": False,
        },
    }
