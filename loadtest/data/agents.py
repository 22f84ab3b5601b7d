"""The data set `agents`: sessions of coding agents, after a public measurement of them (vllm#57103).

Measured there: medians of 43 turns, 142,000 prompt tokens at the end of a session and 444 answer tokens per turn; child
agents in 44 % of the sessions. All sessions of a program begin with the same system prompt and tools. Each turn is sent
with the conversation before it, the server's own answers included. A child agent starts with its parent's conversation
so far and has turns of its own; its parent goes on when it has ended, as with a tool that the parent waits for.

The measurement has no spreads, and says nothing of the children's number and length. Those below are assumptions.

Turns after the first are messages of the role `tool`: at a `user` message, the model's chat template drops the thinking
of all turns before it, so that the prompt would not begin with the one before. The tools are text in the system prompt,
so that every answer is text, which can be sent back as it was.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from loadtest.data.prompt import DatasetSpec, Json, Prompt
from loadtest.data.session_ids import SessionIds, SessionName, session_name
from loadtest.data.text import CHARACTERS_PER_TOKEN, load_text
from loadtest.data.tokenizer import PromptTokenizer

AGENTS_PRESET: Mapping[str, object] = {
    "dataset": "agents",
    "input_len": 142_000,
    "output_len": 444,
    "turns": 43,
    "think_s": 5.0,
    "concurrency": 64,
}
"""Defaults of `--preset agents`."""
SYSTEM_RATIOS = (15_000 / 142_000, 50_000 / 142_000)
"""Shortest and longest system prompt with tools, as shares of a session's last prompt."""
TURNS_SIGMA, NEW_SIGMA, OUTPUT_SIGMA, THINK_SIGMA, CHILD_SIGMA = 0.6, 0.9, 0.7, 1.0, 0.6
"""Spreads of the log-normal distributions: a tool's result varies most, from a line to a file."""
MAX_RATIO = 12
"""Longest draw, as a multiple of the median."""
MAX_LENGTH_RATIO = 1.75
"""A session ends before this multiple of `input_len`, where an agent would compact its conversation: 248,500 of the
model's 262,144 tokens, so that longer answers than planned still fit."""
MORE_CHILDREN_MEAN = 0.7
"""Children beyond the first, in a session that has any (Poisson)."""
CHILD_TURNS_RATIO = 0.2
START_THINKS = 6.0
"""A session starts after a uniform pause of at most this multiple of the median pause, so that the first ones do not
start at one moment."""
TURN_OVERHEAD_TOKENS = 19
"""What the model's chat template adds to a turn: the marks of two messages and of the thinking."""
MIN_NEW_TOKENS, MIN_OUTPUT_TOKENS, MIN_SYSTEM_TOKENS = 6, 2, 24


class PassageSource:
    """Passages of about a number of tokens, from random places of a text that is encoded once."""

    def __init__(self, text: str, tokenizer: PromptTokenizer | None, rng: np.random.Generator) -> None:
        self._text = text
        self._rng = rng
        self._tokenizer = tokenizer
        if tokenizer is None:
            self._starts = np.arange(0, len(text), int(CHARACTERS_PER_TOKEN))
        else:
            self._starts = np.asarray(tokenizer.token_starts(text))

    def after(self, heading: str, tokens: int) -> str:
        """The heading, and a passage that makes it about `tokens` long."""
        length = len(self._tokenizer.encode(heading)) if self._tokenizer else len(heading) // int(CHARACTERS_PER_TOKEN)
        return heading + self._passage(max(1, tokens - length))

    def _passage(self, tokens: int) -> str:
        first = int(self._rng.integers(len(self._starts)))
        parts = []
        while tokens > 0:
            last = min(first + tokens, len(self._starts))
            end = int(self._starts[last]) if last < len(self._starts) else len(self._text)
            parts.append(self._text[int(self._starts[first]) : end])
            tokens -= last - first
            first = 0
        return "".join(parts)


@dataclass(frozen=True)
class _Program:
    """What all sessions of a program begin with."""

    name: str
    system: str
    tokens: int


@dataclass
class _Session:
    """A session while its turns are drawn; `length` is that of the conversation so far, in tokens."""

    session: int
    own_id: str
    turns: int
    program: _Program
    name: SessionName
    parent: int = -1
    turn: int = 0
    length: int = 0


@dataclass
class _Sampler:
    """Draws the sessions in the order in which their turns run."""

    spec: DatasetSpec
    rng: np.random.Generator
    source: PassageSource
    programs: Sequence[_Program]
    prompts: list[Prompt] = field(default_factory=list)
    sessions: int = 0

    def add_session(self, number: int) -> None:
        """All turns of a session and of its children."""
        spec, rng, program = self.spec, self.rng, self.programs[number % len(self.programs)]
        session = self._open(number, self._log_normal(spec.turns, TURNS_SIGMA, 2), program, length=program.tokens)
        forks = self._forks(session.turns)
        pause_s = float(rng.uniform(0, START_THINKS * spec.think_s)) if spec.think_s else 0.0
        while self._add_turn(session, pause_s):
            pause_s = self._pause_s()
            for _ in range(forks.count(session.turn - 1)):
                turns = self._log_normal(max(1.0, spec.turns * CHILD_TURNS_RATIO), CHILD_SIGMA, 1)
                child = self._open(number, turns, program, length=session.length, root=session)
                while self._add_turn(child, self._pause_s()):
                    pass

    def _open(
        self, number: int, turns: int, program: _Program, *, length: int, root: _Session | None = None
    ) -> _Session:
        own = str(uuid.UUID(bytes=self.rng.bytes(16), version=4))
        name = session_name(SessionIds(self.spec.agents.session_ids), number, own, root.own_id if root else own)
        session = _Session(self.sessions, own, turns, program, name, root.session if root else -1, length=length)
        self.sessions += 1
        return session

    def _forks(self, turns: int) -> list[int]:
        """After which turns children start; never after the last one."""
        if turns < 2 or self.rng.random() >= self.spec.agents.child_ratio:
            return []
        count = 1 + int(self.rng.poisson(MORE_CHILDREN_MEAN))
        return [int(turn) for turn in self.rng.integers(0, turns - 1, size=count)]

    def _add_turn(self, session: _Session, pause_s: float) -> bool:
        """Add the session's next turn; False where it has ended."""
        spec, scale = self.spec, self.spec.agents.scale
        output = self._log_normal(spec.output_len * scale, OUTPUT_SIGMA, MIN_OUTPUT_TOKENS)
        text_tokens = self._log_normal(self._new_tokens(), NEW_SIGMA, MIN_NEW_TOKENS)
        prompt_tokens = session.length + text_tokens + TURN_OVERHEAD_TOKENS
        limit = spec.input_len * scale * MAX_LENGTH_RATIO
        if session.turn >= session.turns or (session.turn and prompt_tokens + output > limit):
            return False
        heading = f"{spec.seed}/{session.session}/{session.turn}\n"
        text = self.source.after(heading, text_tokens)
        messages: list[Mapping[str, Json]] = [
            {"role": "tool", "tool_call_id": f"call_{session.session}_{session.turn}", "content": text}
        ]
        is_first = session.parent < 0 and session.turn == 0
        if is_first:
            messages = [{"role": "system", "content": session.program.system}, {"role": "user", "content": text}]
        self.prompts.append(
            Prompt(
                messages=messages,
                prompt_tokens=prompt_tokens,
                output_tokens=output,
                session=session.session,
                turn=session.turn,
                think_s=0.0 if is_first else pause_s,
                start_after_s=pause_s if is_first else 0.0,
                parent=session.parent,
                headers=session.name.headers,
                extra=session.name.body,
                shared_prefix=session.program.name,
                shared_prefix_tokens=session.program.tokens,
            )
        )
        session.turn += 1
        session.length = prompt_tokens + output
        return True

    def _new_tokens(self) -> float:
        """The median text of a turn with which a session of median turns ends at `input_len`."""
        spec = self.spec
        system = spec.input_len * float(np.sqrt(SYSTEM_RATIOS[0] * SYSTEM_RATIOS[1]))
        output = spec.output_len * float(np.exp(OUTPUT_SIGMA**2 / 2))
        # The last turn's answer is not part of its prompt.
        mean = (spec.input_len - system + output) / spec.turns - output
        return (mean * spec.agents.scale - TURN_OVERHEAD_TOKENS) / float(np.exp(NEW_SIGMA**2 / 2))

    def _log_normal(self, median: float, sigma: float, low: int) -> int:
        drawn = max(median, 1e-9) * float(np.exp(self.rng.normal(0.0, sigma)))
        return max(low, round(min(drawn, max(median, low) * MAX_RATIO)))

    def _pause_s(self) -> float:
        return self.spec.think_s * float(np.exp(self.rng.normal(0.0, THINK_SIGMA)))


def agents(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """The data set `agents`: `count` sessions, and their children."""
    rng = np.random.default_rng([spec.seed, 5])
    source = PassageSource(load_text(spec.file), tokenizer, rng)
    longest = spec.input_len * spec.agents.scale * np.geomspace(*SYSTEM_RATIOS, num=spec.agents.programs)
    if spec.agents.programs == 1:
        longest = spec.input_len * spec.agents.scale * np.sqrt([SYSTEM_RATIOS[0] * SYSTEM_RATIOS[1]])
    programs = []
    for number, length in enumerate(longest):
        tokens = max(MIN_SYSTEM_TOKENS, round(float(length)))
        system = source.after(f"{spec.seed}: rules and tools of program {number}.\n", tokens)
        programs.append(_Program(f"program-{number}", system, tokens))
    sampler = _Sampler(spec, rng, source, programs)
    for number in range(count):
        sampler.add_session(number)
    return sampler.prompts
