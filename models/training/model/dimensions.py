"""The demo model's shape: every size in one place, and the `config.json` that says so in the hub's words."""

from dataclasses import dataclass

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class VisionShape:
    """A perception encoder for a CPU. Image and patch size are the real ones: the token counts hang on them."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0
    patch_size: int = 14
    image_size: int = 728
    layer_scale: float = 0.1


@dataclass(frozen=True)
class Shape:
    """Sizes of the text model. Heads, groups and experts divide by 2 (tensor parallel), experts by 4 as well."""

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
    vision: VisionShape = VisionShape()

    @property
    def layer_types(self) -> list[str]:
        """Sliding and full in turn; the MTP layers all slide, as the real model's do."""
        trunk = [SLIDING if i % 2 == 0 else FULL for i in range(self.layers)]
        return trunk + [SLIDING] * self.mtp_layers

    @property
    def moe_layers(self) -> list[int]:
        """The first layer is dense, as are the MTP layers: vLLM refuses a sparse one there."""
        return list(range(1, self.layers))

    def heads(self, layer: int) -> int:
        return self.full_heads if self.layer_types[layer] == FULL else self.sliding_heads

    def theta(self, layer: int) -> float:
        return self.full_theta if self.layer_types[layer] == FULL else self.sliding_theta

    def rotary(self, layer: int) -> float:
        """Share of each head that is rotated: half in full layers, so that the rest ignores distance."""
        return 0.5 if self.layer_types[layer] == FULL else 1.0


def hub_config(shape: Shape, token_ids: dict[str, int]) -> dict[str, object]:
    """`config.json` in the keys and the layout of the hub's Step-3.7 checkpoints."""
    every = range(shape.layers + shape.mtp_layers)
    eos = [token_ids["<|im_end|>"], token_ids["<|endoftext|>"]]
    text: dict[str, object] = {
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": "step3p5",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense_width,
        "num_attention_heads": shape.full_heads,
        "num_attention_groups": shape.kv_groups,
        "head_dim": shape.head_dim,
        "num_hidden_layers": shape.layers,
        "num_nextn_predict_layers": shape.mtp_layers,
        "vocab_size": shape.vocab,
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": shape.context,
        "max_seq_len": shape.context,
        "layer_types": shape.layer_types,
        "rope_theta": [shape.theta(i) for i in every],
        "partial_rotary_factors": [shape.rotary(i) for i in every],
        "attention_other_setting": {
            "attention_type": SLIDING,
            "num_attention_heads": shape.sliding_heads,
            "num_attention_groups": shape.kv_groups,
            "head_dim": shape.head_dim,
        },
        "sliding_window": shape.window,
        "att_impl_type": "GQA",
        "use_head_wise_attn_gate": True,
        "use_moe": True,
        "moe_layers_enum": ",".join(map(str, shape.moe_layers)),
        "moe_num_experts": shape.experts,
        "moe_top_k": shape.experts_per_token,
        "moe_intermediate_size": shape.expert_width,
        "share_expert_dim": shape.shared_width,
        "norm_expert_weight": True,
        "moe_router_activation": "sigmoid",
        "moe_router_scaling_factor": shape.routed_scale,
        "use_moe_router_bias": True,
        "need_fp32_gate": True,
        "tie_word_embeddings": False,
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": eos,
        "torch_dtype": "bfloat16",
    }
    vision = shape.vision
    return {
        "architectures": ["Step3p7ForConditionalGeneration"],
        "model_type": "step3p7",
        "auto_map": {"AutoConfig": "configuration_step3p7.Step3p7Config"},
        "hidden_size": shape.hidden,
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
