"""Scripted answers for the fake engine: which answer a prompt gets is a pure function of the prompt.

A script is a list of conversations. A conversation is recognised by texts in the prompt; the number of
assistant turns in the prompt selects its answer. Nothing is remembered between requests: an attempt that continues on
another engine, or a request that is sent again, gets the same tokens. An answer is written in the model's own
format (reasoning, `</think>`, text, `<tool_call>` blocks), as its chat template renders it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

import msgspec
import yaml
from tokenizers import Tokenizer

END_OF_TURN = "<|im_end|>"
START_OF_TURN = "<|im_start|>"
ASSISTANT_TURN = START_OF_TURN + "assistant"
THINK_PREFILL = "<think>\n"
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


class ScriptedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call. Text arguments stand as they are, others as JSON; `{{name}}` is what a pattern's group found."""

    name: str
    arguments: dict[str, object] = {}


class ScriptedFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes wrong when a token of this answer is due: token number `at_token`, or the one in which `at_text` begins
    (the first time, as it stands in the script). Unless `on_resume`, an attempt that continues another is spared."""

    kind: FaultKind
    at_token: int = 0
    at_text: str | None = None
    factor: float = 10.0
    for_s: float = 2.0
    on_resume: bool = False


class ScriptedTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer: `think` (only where the prompt ends in an opened thought), `say`, `calls`; `raw` replaces all three.
    With `ends: false` it goes on with spaces up to `max_tokens`."""

    think: str = ""
    say: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    raw: str | None = None
    ends: bool = True
    fault: ScriptedFault | None = None


class Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chosen when every pattern of `when` is found in the prompt, every one of `last` in its last message, and none of
    `unless` in the prompt. Turns are counted from where the first pattern of `when` is first found: `turns[n]` is said
    after n assistant turns, the last one from then on. Patterns are regular expressions."""

    turns: tuple[ScriptedTurn, ...]
    when: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    last: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"the conversation {list(self.when)} of the script has no turns")
        for pattern in (*self.when, *self.unless, *self.last):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} in the script is no regular expression: {error}") from error
        for turn in self.turns:
            _check_fault(turn)


def _check_fault(turn: ScriptedTurn) -> None:
    text = turn.fault.at_text if turn.fault is not None else None
    if text is not None and text not in _render(turn, thinks=True):
        raise ValueError(f"the scripted answer has no {text!r} at which to fail")


@dataclass(frozen=True)
class ScriptedAnswer:
    """The tokens of one answer. `length` counts them without the end-of-sequence one."""

    token_ids: Sequence[int]
    length: int
    faults: tuple[Fault, ...]
    filler_token_id: int
    eos_token_id: int | None

    def token(self, position: int) -> int:
        """The token at `position`, whether or not the answer would run so far."""
        return self.token_ids[position] if position < len(self.token_ids) else self.filler_token_id


class AnswerScript:
    """The conversations of a script, with the tokenizer that reads prompts and writes answers."""

    def __init__(self, conversations: Sequence[Conversation], tokenizer: Tokenizer) -> None:
        self._conversations = conversations
        self._tokenizer = tokenizer
        self._vocabulary = range(tokenizer.get_vocab_size())
        self._eos_token_id = tokenizer.token_to_id(END_OF_TURN)
        self._filler_token_id = tokenizer.encode(" ", add_special_tokens=False).ids[0]

    def answer(self, prompt_token_ids: Sequence[int]) -> ScriptedAnswer | None:
        """What the script says to this prompt; None where no conversation is recognised."""
        known = [token for token in prompt_token_ids if token in self._vocabulary]
        prompt = self._tokenizer.decode(known, skip_special_tokens=False)
        for conversation in self._conversations:
            found = _recognise(conversation, prompt)
            if found is not None:
                return self._write(found.turn, found.groups, thinks=prompt.endswith(THINK_PREFILL))
        return None

    def _write(self, turn: ScriptedTurn, groups: Mapping[str, str], *, thinks: bool) -> ScriptedAnswer:
        template = _render(turn, thinks=thinks)
        text = _filled(template, groups)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        faults: tuple[Fault, ...] = ()
        if turn.fault is not None:
            at = _token_of(turn.fault, template, encoding.offsets, groups)
            told = turn.fault
            faults = (Fault(told.kind, at, factor=told.factor, for_s=told.for_s, on_resume=told.on_resume),)
        ids = list(encoding.ids)
        length = len(ids) if turn.ends else 1 << 62
        return ScriptedAnswer(ids, length, faults, self._filler_token_id, self._eos_token_id)


@dataclass(frozen=True)
class _Found:
    turn: ScriptedTurn
    groups: Mapping[str, str]


def _recognise(conversation: Conversation, prompt: str) -> _Found | None:
    groups: dict[str, str] = {}
    matches = [re.search(pattern, prompt) for pattern in conversation.when]
    matches += [re.search(pattern, _last_message(prompt)) for pattern in conversation.last]
    for match in matches:
        if match is None:
            return None
        groups.update({name: value for name, value in match.groupdict().items() if value is not None})
    if any(re.search(pattern, prompt) for pattern in conversation.unless):
        return None
    first = matches[0] if conversation.when else None
    said = prompt.count(ASSISTANT_TURN, first.end() if first is not None else 0)
    # The last assistant turn is the one to be said, unless it is over (a prompt that no chat template made).
    opened = END_OF_TURN not in prompt.rpartition(ASSISTANT_TURN)[2]
    turns_before = said - 1 if opened else said
    return _Found(conversation.turns[min(max(turns_before, 0), len(conversation.turns) - 1)], groups)


def _last_message(prompt: str) -> str:
    """The message that the answer follows: the template puts the opened assistant turn behind it."""
    return prompt.rpartition(ASSISTANT_TURN)[0].rpartition(START_OF_TURN)[2] or prompt


def _render(turn: ScriptedTurn, *, thinks: bool) -> str:
    if turn.raw is not None:
        return turn.raw
    parts = [turn.say] if turn.say else []
    for call in turn.calls:
        arguments = "".join(
            f"<parameter={name}>\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n"
            "</parameter>\n"
            for name, value in call.arguments.items()
        )
        parts.append(f"<tool_call>\n<function={call.name}>\n{arguments}</function>\n</tool_call>")
    thought = f"{turn.think}\n</think>\n" if thinks else ""
    return thought + "\n".join(parts)


def _filled(text: str, groups: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: groups.get(found[1], found[0]), text)


def _token_of(
    fault: ScriptedFault, template: str, offsets: Sequence[tuple[int, int]], groups: Mapping[str, str]
) -> int:
    if fault.at_text is None:
        return fault.at_token
    place = len(_filled(template.partition(fault.at_text)[0], groups))
    return next(number for number, (_, end) in enumerate(offsets) if end > place)


def load_conversations(script: object) -> tuple[Conversation, ...]:
    """The conversations of `script`: the path of a YAML file, or what such a file holds. Raises `ValueError`."""
    if isinstance(script, str):
        try:
            script = yaml.safe_load(Path(script).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"the script of the fake engine cannot be read: {error}") from error
    return msgspec.convert(script, tuple[Conversation, ...])


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a model's folder, or of a `tokenizer.json`."""
    place = Path(path)
    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.is_file():
        raise ValueError(f"a scripted fake engine needs `tokenizer`: {file} is no file")
    return Tokenizer.from_file(str(file))


class FaultKind(Enum):
    """The kind of a fault."""

    CRASH = "crash"
    HANG = "hang"
    SPIN = "spin"
    """It makes no further step, and uses CPU time all the same."""
    SLOW = "slow"
    COMPILE = "compile"
    """A compiler runs for `for_s` before the step."""
    STARVE = "starve"
    """Its processes get no CPU for `for_s` before the step."""
    EVICT = "evict"
    """The prefix cache loses everything that no running request uses, when the request starts, whatever `at_token`."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to the engine when a request is about to give its token number `at_token` (from 0).

    It happens for the requests named in `request_ids`, and for every `every`-th request that starts (0: for none).
    Unless `on_resume`, it spares a request that already died elsewhere: one fault then ends one engine, not all.
    `factor` is how many times longer steps take from then on while the request runs (`SLOW`); `for_s` how long the step
    is held up (`COMPILE`, `STARVE`).
    """

    kind: FaultKind
    at_token: int
    request_ids: frozenset[str] = frozenset()
    every: int = 0
    factor: float = 10.0
    for_s: float = 2.0
    on_resume: bool = False
