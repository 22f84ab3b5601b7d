"""From samples to text, as transformers and vLLM render it, and from text to token ids."""

import json
from dataclasses import dataclass
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from models.training.tasks import curriculum
from models.training.tasks.sample import Sample, ToolCall
from models.training.tasks.tool_catalogue import KNOWN_TOOLS
from models.training.tasks.tool_tasks import ACTIONS, KEYS
from models.training.tasks.vocab import slot_words, spelling_corpus
from models.training.tokenizer import build_tokenizer, token_id

TURN_END = "<|im_end|>"
IMAGE = "<im_patch>"
IMAGE_TOKENS = 169
TOKENIZER_SAMPLES = 600
"""Samples of each kind that the tokenizer's whole-word entries are chosen from."""


def _to_json(value: object, ensure_ascii: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii)


class Renderer:
    """Renders prompts with a chat template, with the settings of transformers."""

    def __init__(self, template: Path) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = _to_json
        self._template = environment.from_string(template.read_text())

    def prompt(self, sample: Sample) -> str:
        """The text that a server gives to the model. It ends with the opened `<think>`."""
        return self._template.render(
            messages=list(sample.messages),
            tools=list(sample.tools) or None,
            reasoning_effort=sample.effort,
            add_generation_prompt=True,
        )


def call_text(call: ToolCall) -> str:
    """A tool call in the model's XML format."""
    values = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in call.arguments.items())
    return f"<tool_call>\n<function={call.name}>\n{values}</function>\n</tool_call>"


def completion(sample: Sample) -> str:
    """The text that the model should write after `<think>`, with the end of its turn."""
    task = sample.task
    body = "\n".join(call_text(call) for call in task.calls) if task.calls else task.answer
    return f"{sample.thought}\n</think>\n{body}{TURN_END}"


@dataclass(frozen=True)
class Row:
    """A sample as token ids: the prompt, then from `completion_start` on the completion."""

    sample: Sample
    ids: list[int]
    completion_start: int


class Encoder:
    """Renders and tokenizes samples."""

    def __init__(self, tokenizer: Tokenizer, renderer: Renderer) -> None:
        self.tokenizer, self.renderer = tokenizer, renderer
        self.image = token_id(tokenizer, IMAGE)
        self._image_start, self._image_end = (token_id(tokenizer, t) for t in ("<im_start>", "<im_end>"))

    def row(self, sample: Sample) -> Row:
        prompt = self._expand_images(self.tokenizer.encode(self.renderer.prompt(sample), add_special_tokens=False).ids)
        target = self.tokenizer.encode(completion(sample), add_special_tokens=False).ids
        return Row(sample, prompt + target, len(prompt))

    def word_token(self, word: str) -> int:
        """The token of a word that follows another one. Raises `ValueError` if it has several."""
        _, token = self.tokenizer.encode(f"a {word}", add_special_tokens=False).ids
        return token

    def _expand_images(self, ids: list[int]) -> list[int]:
        """Replace each image token by a start token, `IMAGE_TOKENS` image tokens and an end token, as vLLM does."""
        image = [self._image_start, *[self.image] * IMAGE_TOKENS, self._image_end]
        expanded: list[int] = []
        for i in ids:
            expanded += image if i == self.image else [i]
        return expanded


def make_tokenizer(vocab_size: int, renderer: Renderer) -> Tokenizer:
    """The tokenizer of the curriculum's texts, the same every time. Every tool's topic is one token."""
    numbers = range(TOKENIZER_SAMPLES)
    samples = [curriculum.draw(kind, i, held_out=False) for kind in curriculum.TASK_GENERATORS for i in numbers]
    topics = [f"For {tool.topic}" for tool in KNOWN_TOOLS] * len(samples)
    texts = [renderer.prompt(sample) + completion(sample) for sample in samples]
    spelling = spelling_corpus(curriculum.task_rng("train", "spelling", 0))
    return build_tokenizer(texts + topics, spelling, slot_words() | set(KEYS + ACTIONS), vocab_size)
