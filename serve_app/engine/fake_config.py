"""How a `FakeEngine` behaves: what it says, how fast, and what goes wrong."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum

import msgspec


class FaultKind(Enum):
    """What goes wrong."""

    CRASH = "crash"
    HANG = "hang"
    SPIN = "spin"
    """It makes no step any more, and burns CPU time all the same."""
    SLOW = "slow"


@dataclass(frozen=True)
class Fault:
    """Something that happens to the engine when a request is about to give its token number `at_token` (from 0).

    It happens for the requests named in `request_ids`, and for every `every`-th request that starts (0: for none).
    Unless `on_resume`, it spares a request that already died elsewhere: one fault then costs one engine, not the fleet.
    `factor` is how many times longer steps take from then on while the request runs (`SLOW`).
    """

    kind: FaultKind
    at_token: int
    request_ids: frozenset[str] = frozenset()
    every: int = 0
    factor: float = 10.0
    on_resume: bool = False


@dataclass(frozen=True)
class FakeEngineConfig:
    """How the engine behaves. Plain tokens are drawn from `plain_token_ids` (first, last).

    A request first gives `think_tokens` plain tokens and `think_end_token_id` (if that is not None), then an answer of
    `answer_tokens` (shortest, longest) plain tokens and `eos_token_id`, unless something stops it before.
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
    faults: tuple[Fault, ...] = ()


def fake_token(config: FakeEngineConfig, prompt_token_ids: Sequence[int], position: int) -> int:
    """The token that this engine gives at `position` of the answer to this prompt, if it runs so far."""
    return Script(config, prompt_token_ids).token(position)


class Script:
    """What one prompt's answer consists of. `length` counts its tokens before the end-of-sequence one."""

    def __init__(self, config: FakeEngineConfig, prompt_token_ids: Sequence[int]) -> None:
        packed = struct.pack(f"<{len(prompt_token_ids)}q", *prompt_token_ids)
        self._key = hashlib.blake2b(packed, digest_size=16).digest()
        self._config = config
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


def fake_engine_config(settings: Mapping[str, object]) -> FakeEngineConfig:
    """The configuration that `settings`, as read from a YAML file, mean. Raises `ValueError` for what is not one."""
    known = {field.name for field in fields(FakeEngineConfig)}
    if unknown := set(settings) - known:
        raise ValueError(f"a fake engine has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    return msgspec.convert(dict(settings), FakeEngineConfig)
