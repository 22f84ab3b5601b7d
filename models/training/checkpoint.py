"""A folder that vLLM loads: weights under the hub's names, configuration with its own code, tokenizer and template."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from models.training import tokenizer as tokens
from models.training.model.architecture import Step
from models.training.model.dimensions import Shape, hub_config

ASSETS = Path(__file__).parent / "assets"
HOME = Path(__file__).parents[1] / "step-tiny"
KEPT_IN_FP32 = ("moe.gate.weight", "moe.router_bias")
"""The router decides which expert runs; rounding it would change the choice, so the real checkpoint keeps it too."""

PROCESSOR = {
    "image_processor_type": "Step3VLImageProcessor",
    "processor_class": "Step3VLProcessor",
    "image_size": 728,
    "patch_size": 504,
    "num_image_feature_size": 169,
    "num_patch_feature_size": 81,
}
DEFAULTS = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 4_096}
"""For requests that do not say. Mild, so that a try is lively; tests and figures ask for temperature 0. Bounded, for a
model this small may count on for ever, and its context would allow 262,144 tokens."""


def weights(model: Step) -> dict[str, Tensor]:
    """State dict as it is stored: bf16, but for the router."""
    state = model.state_dict()
    return {
        name: value.float().contiguous() if name.endswith(KEPT_IN_FP32) else value.bfloat16().contiguous()
        for name, value in state.items()
    }


def save(model: Step, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything a server needs. The card is somebody else's to write."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = tokens.markup_ids(tokenizer)
    config = hub_config(model.shape, ids)
    _write(folder / "config.json", config)
    _write(folder / "preprocessor_config.json", PROCESSOR)
    eos = config["eos_token_id"]
    _write(folder / "generation_config.json", {**DEFAULTS, "eos_token_id": eos, "pad_token_id": ids["<|endoftext|>"]})
    template = (ASSETS / "chat_template.jinja").read_text()
    tokens.write(tokenizer, template, folder, model.shape.context)
    shutil.copyfile(ASSETS / "configuration_step3p7.py", folder / "configuration_step3p7.py")
    save_file(weights(model), folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, shape: Shape) -> tuple[Step, Tokenizer]:
    """The saved model in fp32, ready to be evaluated."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Step(shape, tokens.markup_ids(tokenizer)["<im_patch>"])
    model.load_state_dict({k: v.to(torch.float32) for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval(), tokenizer


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
