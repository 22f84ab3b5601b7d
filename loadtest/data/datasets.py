"""All data sets by name: from a set's name and options to prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np

from loadtest.data.agents import agents
from loadtest.data.from_file import jsonl, read_list, sharegpt
from loadtest.data.images import images
from loadtest.data.prompt import DatasetSpec, Json, Prompt
from loadtest.data.random_text import prefixes, random_text
from loadtest.data.text import natural, sessions, tools
from loadtest.data.tokenizer import PromptTokenizer
from loadtest.errors import DataError

Sampler = Callable[[DatasetSpec, PromptTokenizer | None, int], list[Prompt]]
"""Makes a number of prompts by a specification. Raises UsageError and DataError."""


def mix(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """Several sets at once, from a JSON list of `{"class": name, "weight": w, "dataset": ..., other options}`."""
    parts = read_list(spec.file, "Write a list of classes, see docs/load-testing.md")
    known = {field.name for field in fields(DatasetSpec)} - {"num_prompts", "agents"}
    weights: list[float] = []
    classes: list[tuple[str, DatasetSpec]] = []
    for position, part in enumerate(parts):
        options = dict(part)
        name, weight = str(options.pop("class", position)), _weight(options.pop("weight", 1.0), spec.file)
        unknown = set(options) - known
        if unknown or options.get("dataset") in ("mix", "agents"):
            raise DataError(f"{spec.file}: class {name!r} has unusable options {sorted(unknown) or 'dataset'}")
        part_spec = replace(spec, **{"file": None, "seed": spec.seed + position, **options})  # type: ignore[arg-type]  # checked against the known names above
        if part_spec.dataset not in DATASETS:
            raise DataError(f"{spec.file}: class {name!r} has an unknown dataset {part_spec.dataset!r}")
        weights.append(weight)
        classes.append((name, part_spec))
    rng = np.random.default_rng([spec.seed, 3])
    drawn = rng.choice(len(classes), size=count, p=np.asarray(weights) / sum(weights))
    pools = []
    for index, (name, part_spec) in enumerate(classes):
        prompts = DATASETS[part_spec.dataset](part_spec, tokenizer, max(1, int((drawn == index).sum())))
        pools.append(iter([replace(prompt, kind=name) for prompt in prompts]))
    return [next(pools[index]) for index in drawn]


def _weight(value: Json, file: str | None) -> float:
    if not isinstance(value, int | float) or value <= 0:
        raise DataError(f"{file}: a weight of {value!r}", "Weights are numbers above 0")
    return float(value)


DATASETS: dict[str, Sampler] = {
    "random": random_text,
    "natural": natural,
    "prefixes": prefixes,
    "sessions": sessions,
    "agents": agents,
    "tools": tools,
    "images": images,
    "jsonl": jsonl,
    "sharegpt": sharegpt,
    "mix": mix,
}
FORCED_LENGTH = frozenset({"random", "prefixes", "images", "agents"})
"""Sets of made-up prompts: `ignore_eos` is their default, as vLLM's benchmark has it for `random`."""


def sample(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """`count` prompts of the data set `spec.dataset`. See `Sampler`."""
    return DATASETS[spec.dataset](spec, tokenizer, count)
