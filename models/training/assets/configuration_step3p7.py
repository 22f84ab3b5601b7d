"""The configuration classes that `--trust-remote-code` loads, as the hub's checkpoints ship theirs.

vLLM 0.32 has no class of its own for this model, and transformers' one fails in it. The per-layer lists cover the
trunk and the MTP layers; transformers checks them against the trunk alone, so they are set after its checks have run.
"""

# ruff: noqa: INP001  # copied into a checkpoint, where it is no package

from typing import Any, ClassVar

from transformers import PretrainedConfig

PER_LAYER = ("layer_types", "rope_theta", "partial_rotary_factors")


class Step3p7VisionConfig(PretrainedConfig):
    model_type = "perception_encoder"


class Step3p5TextConfig(PretrainedConfig):
    model_type = "step3p5"

    def __init__(self, **fields: Any) -> None:
        lists = {name: fields.pop(name, None) for name in PER_LAYER}
        self.swiglu_limits = None
        self.swiglu_limits_shared = None
        self.attention_other_setting = None
        super().__init__(**fields)
        for name, value in lists.items():
            setattr(self, name, value)


class Step3p7Config(PretrainedConfig):
    model_type = "step3p7"
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {
        "text_config": Step3p5TextConfig,
        "vision_config": Step3p7VisionConfig,
    }

    def __init__(
        self,
        text_config: dict[str, Any] | Step3p5TextConfig | None = None,
        vision_config: dict[str, Any] | Step3p7VisionConfig | None = None,
        **fields: Any,
    ) -> None:
        if not isinstance(text_config, Step3p5TextConfig):
            text_config = Step3p5TextConfig(**(text_config or {}))
        if not isinstance(vision_config, Step3p7VisionConfig):
            vision_config = Step3p7VisionConfig(**(vision_config or {}))
        self.text_config = text_config
        self.vision_config = vision_config
        super().__init__(**fields)
