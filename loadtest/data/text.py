"""Prompts of natural English of any length, without a download.

Speculative decoding (MTP) accepts other shares of random tokens than of natural text. The text is Python's language
reference, which the standard library has for `help()`, or the user's own file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loadtest.data.prompt import DatasetSpec, Json, Prompt
from loadtest.data.tokenizer import PromptTokenizer
from loadtest.errors import DataError

CHARACTERS_PER_TOKEN = 4.0
"""Used where there is no tokenizer; the response's usage then has the real lengths."""


class TextSource:
    """Draws passages from random places of a text."""

    def __init__(self, text: str, tokenizer: PromptTokenizer | None, rng: np.random.Generator) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self._rng = rng

    def passage(self, length: int) -> tuple[str, int]:
        """About `length` tokens that begin at a paragraph, and their exact number; 0 without a tokenizer."""
        start = self._text.find("\n\n", int(self._rng.integers(len(self._text))))
        text = self._text[max(start, 0) :] + self._text
        characters = int(length * CHARACTERS_PER_TOKEN * 1.6) + 200
        text = (text * (characters // len(text) + 1))[:characters].lstrip()
        if self._tokenizer is None:
            return text[: int(length * CHARACTERS_PER_TOKEN)], 0
        ids = self._tokenizer.encode(text)
        while len(ids) < length:
            text += text
            ids = self._tokenizer.encode(text)
        cut = self._tokenizer.decode(ids[:length])
        return cut, len(self._tokenizer.encode(cut))


def load_text(file: str | None) -> str:
    """The user's file, or Python's language reference. Raises DataError."""
    if file is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as bad:
        reason = getattr(bad, "strerror", None) or bad
        raise DataError(f"cannot read the text {file!r} ({reason})", "Give --dataset-path a UTF-8 text file") from bad
    if len(text) < 1000:
        raise DataError(f"{file} has only {len(text)} characters", "Give --dataset-path a longer text")
    return text


TASKS = (
    "Summarise the following text in your own words.",
    "Explain the following text to someone who is new to the subject.",
    "List the rules that the following text states, one by one.",
    "Write questions for an examination about the following text, with answers.",
    "Say what is surprising in the following text, and why.",
)


def natural(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """The data set `natural`: a task and a passage."""
    rng = np.random.default_rng(spec.seed)
    source = TextSource(load_text(spec.file), tokenizer, rng)
    prompts = []
    for index in range(count):
        task = TASKS[index % len(TASKS)]
        passage, length = source.passage(max(1, spec.input_len - 16))
        text = f"{task}\n\n{passage}"
        prompt_tokens = length + len(tokenizer.encode(task)) + 2 if tokenizer else 0
        prompts.append(Prompt(text=text, prompt_tokens=prompt_tokens, output_tokens=spec.output_len))
    return prompts


def sessions(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """The data set `sessions`: conversations of a long first message and short later ones.

    Each turn is sent with the conversation before it.
    """
    rng = np.random.default_rng(spec.seed)
    source = TextSource(load_text(spec.file), tokenizer, rng)
    prompts: list[Prompt] = []
    session = 0
    while len(prompts) < count:
        for turn in range(min(spec.turns, count - len(prompts))):
            length = spec.input_len if turn == 0 else max(8, spec.input_len // 16)
            passage, tokens_in = source.passage(length)
            text = (
                f"{TASKS[session % len(TASKS)]}\n\n{passage}" if turn == 0 else f"And how does this fit in? {passage}"
            )
            prompts.append(
                Prompt(
                    text=text,
                    # The length of a later turn's conversation depends on the answers.
                    prompt_tokens=tokens_in if turn == 0 else 0,
                    output_tokens=spec.output_len,
                    session=session,
                    turn=turn,
                    think_s=float(rng.exponential(spec.think_s)) if turn and spec.think_s else 0.0,
                )
            )
        session += 1
    return prompts


TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {field: {"type": "string", "description": about} for field, about in fields.items()},
                "required": list(fields),
            },
        },
    }
    for name, description, fields in (
        ("get_weather", "Current weather of a place.", {"place": "City and country"}),
        ("search_documents", "Find documents by their meaning.", {"query": "What to look for"}),
        ("read_file", "The text of a file.", {"path": "Path from the project's root"}),
        ("run_query", "Run a read-only SQL query.", {"sql": "The query"}),
    )
]
PLACES = ("Paris", "Nairobi", "Osaka", "Lima", "Oslo", "Perth", "Quito", "Hanoi", "Tunis", "Riga")


def tools(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """The data set `tools`: questions for a tool, after a passage that gives the prompt its length."""
    rng = np.random.default_rng(spec.seed)
    source = TextSource(load_text(spec.file), tokenizer, rng)
    prompts = []
    for _ in range(count):
        passage, length = source.passage(spec.input_len)
        place = PLACES[int(rng.integers(len(PLACES)))]
        text = f"{passage}\n\nLeave the text above aside. What is the weather in {place} right now? Use a tool."
        extra: dict[str, Json] = {"tools": TOOLS, "tool_choice": "auto"}
        prompts.append(Prompt(text=text, prompt_tokens=length, output_tokens=spec.output_len, extra=extra))
    return prompts
