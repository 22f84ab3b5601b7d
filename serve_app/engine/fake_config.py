"""How a `FakeEngine` behaves: its answers, its speed, and its faults."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import msgspec

from serve_app.engine.fake_script import (
    AnswerScript,
    Conversation,
    Fault,
    ScriptedAnswer,
    load_conversations,
    load_tokenizer,
)


@dataclass(frozen=True)
class FakeEngineConfig:
    """How the engine behaves. Plain tokens are drawn from `plain_token_ids` (first, last).

    A request first gives `think_tokens` plain tokens and `think_end_token_id` (if that is not None), then an answer of
    `answer_tokens` (shortest, longest) plain tokens and `eos_token_id`, unless something stops it before.

    Prompts that a conversation of `script` recognises get its answer instead (`fake_script.py`); they are read with
    `tokenizer`, the model's folder. In a YAML file `script` may also be the path of a file of its own.

    A step takes `gap_s`, and the time of the prompt tokens that it computes at `prefill_tokens_per_s` (0: none, then
    each prompt is computed in one step). It has `max_num_batched_tokens` (None: `max_model_len`) for its running
    requests, of which each takes `tokens_per_step`, and then for prompts. No first token comes within `first_token_s`.

    With `prefix_caching` it keeps full pages (`protocol/pages.py`) of prompts and answers, and does not compute them
    again. `kv_cache_tokens` (None: enough for `max_num_seqs` of the longest requests) bound what it keeps and what runs
    at a time; a request that runs is never stopped for lack of room.
    """

    plain_token_ids: tuple[int, int] = (100, 999)
    think_tokens: int = 0
    think_end_token_id: int | None = None
    answer_tokens: tuple[int, int] = (16, 64)
    eos_token_id: int | None = None
    first_token_s: float = 0.0
    gap_s: float = 0.0
    tokens_per_step: int = 1
    max_num_seqs: int = 16
    max_model_len: int = 8192
    start_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    max_num_batched_tokens: int | None = None
    prefix_caching: bool = False
    kv_cache_tokens: int | None = None
    faults: tuple[Fault, ...] = ()
    script: tuple[Conversation, ...] = ()
    tokenizer: str | None = None

    @property
    def step_tokens(self) -> int:
        """How many tokens one step computes at most."""
        return self.max_model_len if self.max_num_batched_tokens is None else self.max_num_batched_tokens

    @property
    def capacity_tokens(self) -> int:
        """How many tokens the KV cache holds."""
        return self.max_num_seqs * self.max_model_len if self.kv_cache_tokens is None else self.kv_cache_tokens


def fake_token(config: FakeEngineConfig, prompt_token_ids: Sequence[int], position: int) -> int:
    """The token that this engine gives at `position` of the answer to this prompt, if it runs so far."""
    return RandomAnswer(config, prompt_token_ids).token(position)


class AnswerSource:
    """Chooses a prompt's answer: the script's, else a random one."""

    def __init__(self, config: FakeEngineConfig) -> None:
        self._config = config
        self._script = AnswerScript(config.script, load_tokenizer(config.tokenizer or "")) if config.script else None

    def answer(self, prompt_token_ids: Sequence[int]) -> RandomAnswer | ScriptedAnswer:
        """The answer to this prompt, at whatever position an attempt begins."""
        scripted = self._script.answer(prompt_token_ids) if self._script is not None else None
        return scripted or RandomAnswer(self._config, prompt_token_ids)


class RandomAnswer:
    """The answer to one prompt. `length` counts its tokens before the end-of-sequence one."""

    faults: tuple[Fault, ...] = ()

    def __init__(self, config: FakeEngineConfig, prompt_token_ids: Sequence[int]) -> None:
        packed = struct.pack(f"<{len(prompt_token_ids)}q", *prompt_token_ids)
        self._key = hashlib.blake2b(packed, digest_size=16).digest()
        self._config = config
        self.eos_token_id = config.eos_token_id
        shortest, longest = config.answer_tokens
        thinking = 0 if config.think_end_token_id is None else config.think_tokens + 1
        self.length = thinking + shortest + self._draw(-1) % (longest - shortest + 1)

    def token(self, position: int) -> int:
        """The token at `position` of the answer, whether or not it would run so far."""
        if position == self._config.think_tokens and self._config.think_end_token_id is not None:
            return self._config.think_end_token_id
        first, last = self._config.plain_token_ids
        return first + self._draw(position) % (last - first + 1)

    def _draw(self, position: int) -> int:
        digest = hashlib.blake2b(struct.pack("<q", position), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "little")


def fake_engine_config(settings: Mapping[str, object], tokenizer: str | None = None) -> FakeEngineConfig:
    """The configuration that `settings`, as read from a YAML file, mean; `tokenizer` is where a script finds one unless
    it names its own. Raises `ValueError` for what is not one."""
    known = {field.name for field in fields(FakeEngineConfig)}
    if unknown := set(settings) - known:
        raise ValueError(f"a fake engine has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    given = {"tokenizer": tokenizer, **settings}
    if "script" in given:
        given["script"] = msgspec.to_builtins(load_conversations(given["script"]))
    return msgspec.convert(given, FakeEngineConfig)
