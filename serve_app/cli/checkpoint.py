"""Reads a checkpoint on disk without torch: names of files, headers of tensors, the configuration.

Nothing here loads a weight: a safetensors file begins with the names, types and positions of its tensors.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.config.memory import ModelShape

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_EXPERTS = re.compile(r"\.moe\.(gate|up|down)_proj\.|\.experts\.")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000
"""The format's own limit: a larger number means that the file is something else."""


class BadCheckpoint(Exception):
    """The folder is not a complete checkpoint. The message says what is wrong with which file."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder that has a configuration and every weight file that it lists."""

    folder: Path
    config: Mapping[str, object]
    types: Mapping[str, str]
    """Type of each tensor by name, as safetensors writes it (`BF16`, `F8_E4M3`)."""
    sizes: Mapping[str, int]
    """Bytes of each tensor by name."""
    weights_bytes: int

    def text(self) -> Mapping[str, object]:
        """The language model's part of the configuration."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else self.config

    def number(self, name: str) -> int:
        """A count in the language model's configuration; 0 where there is none."""
        value = self.text().get(name)
        return value if isinstance(value, int) else 0

    def mtp_layers(self) -> int:
        """How many Multi-Token-Prediction layers have tensors. The configuration may list more: some quantised exports
        drop the layers and keep the number."""
        first = self.number("num_hidden_layers")
        found = {int(match.group(1)) for name in self.types if (match := _LAYER.search(name)) and "eh_proj" in name}
        return len({layer for layer in found if layer >= first})

    def quantised_shared_experts(self) -> list[str]:
        """Tensors of the shared expert that are FP8: tensor parallelism splits them in the middle of a block."""
        return [name for name, kind in self.types.items() if "share_expert" in name and kind.startswith("F8")]

    def shape(self) -> ModelShape:
        """The shape on which memory and divisibility depend."""
        text = self.text()
        layers, mtp = self.number("num_hidden_layers"), self.number("num_nextn_predict_layers")
        kinds = text.get("layer_types")
        named = [str(kind) for kind in kinds] if isinstance(kinds, list) else []
        full = sum(kind == "full_attention" for kind in named[:layers]) if named else layers // 2
        other = text.get("attention_other_setting")
        other_heads = other.get("num_attention_heads") if isinstance(other, Mapping) else None
        heads = [self.number("num_attention_heads"), other_heads if isinstance(other_heads, int) else 0]
        routers = [name for name in self.sizes if name.endswith(".moe.gate.weight")]
        projections = sum(size for name, size in self.sizes.items() if "eh_proj" in name)
        return ModelShape(
            weights_bytes=self.weights_bytes,
            full_layers=full,
            sliding_layers=layers - full + mtp,
            window=self.number("sliding_window"),
            heads=tuple(count for count in heads if count),
            kv_heads=self.number("num_attention_groups") or 1,
            head_dim=self.number("head_dim"),
            experts=self.number("moe_num_experts"),
            expert_width=self.number("moe_intermediate_size"),
            expert_bytes=sum(size for name, size in self.sizes.items() if _EXPERTS.search(name)),
            whole_bytes=projections + sum(self.sizes[name] for name in routers),
            whole_loaded_bytes=projections
            + sum(self.sizes[name] * (1 if self.types[name] == "F32" else 2) for name in routers),
            context=self.number("max_position_embeddings") or ModelShape.context,
            fp8=any("expert" in name or ".moe." in name for name, kind in self.types.items() if kind.startswith("F8")),
        )


def read(folder: Path) -> Checkpoint:
    """Read a folder. Raises `BadCheckpoint` for files that are missing, truncated, or not what their name says."""
    if not folder.is_dir():
        raise BadCheckpoint(f"{folder}: no such folder")
    config = _json(folder / "config.json")
    missing = list(_missing(folder, config))
    if missing:
        raise BadCheckpoint(f"{folder}: missing {', '.join(missing)}")
    tensors: dict[str, tuple[str, int]] = {}
    size = 0
    for file in _weight_files(folder):
        tensors |= _header(file)
        size += file.stat().st_size
    types = {name: kind for name, (kind, _) in tensors.items()}
    return Checkpoint(folder, config, types, {name: count for name, (_, count) in tensors.items()}, size)


def _missing(folder: Path, config: Mapping[str, object]) -> Iterator[str]:
    def has(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    if not has(_SINGLE, _INDEX):
        yield f"weights ({_SINGLE} or {_INDEX})"
    if not has("tokenizer.json", "tokenizer.model"):
        yield "tokenizer.json"
    if not has("tokenizer_config.json"):
        yield "tokenizer_config.json"
    elif not has("chat_template.jinja", "chat_template.json") and (
        "chat_template" not in _json(folder / "tokenizer_config.json")
    ):
        yield "chat_template.jinja (requests of chat cannot be rendered)"
    if "vision_config" in config and not has("preprocessor_config.json", "processor_config.json"):
        yield "preprocessor_config.json (images cannot be read)"
    auto_map = config.get("auto_map")
    modules = {str(name).split(".")[0] for name in auto_map.values()} if isinstance(auto_map, Mapping) else set()
    yield from (f"{module}.py" for module in sorted(modules) if "--" not in module and not has(f"{module}.py"))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        return [folder / _SINGLE]
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise BadCheckpoint(f"{index}: has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise BadCheckpoint(f"{folder}: {len(absent)} of {len(names)} weight files are missing, first {absent[0]}")
    return [folder / name for name in names]


def _header(file: Path) -> dict[str, tuple[str, int]]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise BadCheckpoint(f"{file}: a Git LFS pointer, not the weights; run `git lfs pull`")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0  # the format's first field
        if not 0 < length <= min(size, _LARGEST_HEADER):
            raise BadCheckpoint(f"{file}: not a safetensors file, or cut short")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise BadCheckpoint(f"{file}: not a safetensors file") from error
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != 8 + length + end:
        raise BadCheckpoint(f"{file}: {size:,} bytes, but its header promises {8 + length + end:,}; fetch it again")
    return {
        name: (str(entry["dtype"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in tensors.items()
    }


def _json(file: Path) -> dict[str, object]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{file.parent}: missing {file.name}") from error
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file}: {error}") from error
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{file}: not a JSON object")
    return value
