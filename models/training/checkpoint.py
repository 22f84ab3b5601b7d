"""Saves and loads checkpoint folders as vLLM loads them: weights, configuration and its code, tokenizer, template."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from models.training.model.architecture import StepModel
from models.training.model.dimensions import ModelDimensions, hub_config
from models.training.tokenizer import markup_ids, save_tokenizer

ASSETS = Path(__file__).parent / "assets"
CHAT_TEMPLATE = ASSETS / "chat_template.jinja"
HOME = Path(__file__).parents[1] / "step-tiny"
KEPT_IN_FP32 = ("moe.gate.weight", "moe.router_bias")
"""Rounding the router would change the choice of experts. The real checkpoint has it in fp32 as well."""

PROCESSOR = {
    "image_processor_type": "Step3VLImageProcessor",
    "processor_class": "Step3VLProcessor",
    "image_size": 728,
    "patch_size": 504,
    "num_image_feature_size": 169,
    "num_patch_feature_size": 81,
}
GENERATION_DEFAULTS = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 4_096}
"""Sampling parameters for requests without their own. `max_new_tokens` ends answers in which the model does not stop;
its context would allow 262,144 tokens."""


def weights(model: StepModel) -> dict[str, Tensor]:
    """The state dict as it is stored: bf16, except for the router."""
    state = model.state_dict()
    return {
        name: value.float().contiguous() if name.endswith(KEPT_IN_FP32) else value.bfloat16().contiguous()
        for name, value in state.items()
    }


def save(model: StepModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write all files that a server needs. `card.write` writes the `README.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = markup_ids(tokenizer)
    config = hub_config(model.dims, ids)
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", PROCESSOR)
    eos = config["eos_token_id"]
    _write_json(
        folder / "generation_config.json",
        {**GENERATION_DEFAULTS, "eos_token_id": eos, "pad_token_id": ids["<|endoftext|>"]},
    )
    template = CHAT_TEMPLATE.read_text()
    save_tokenizer(tokenizer, template, folder, model.dims.context)
    shutil.copyfile(ASSETS / "configuration_step3p7.py", folder / "configuration_step3p7.py")
    save_file(weights(model), folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, dims: ModelDimensions) -> tuple[StepModel, Tokenizer]:
    """Model in fp32 and evaluation mode, and its tokenizer."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = StepModel(dims, markup_ids(tokenizer)["<im_patch>"])
    model.load_state_dict({k: v.to(torch.float32) for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval(), tokenizer


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
