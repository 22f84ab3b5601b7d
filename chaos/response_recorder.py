"""What came back, whatever the protocol: parts of text by channel, how it ended, what it is said to have cost.

The rule: everything that a client could tell apart is in an `Answer`, and nothing else. How a text was cut into events
is not (a resumed stream may bring two tokens in one event), nor are random ids; but ids must not change within a
stream, counted events must not skip or repeat, and a stream's own summary must be what it streamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec


@dataclass(frozen=True)
class Answer:
    """One answer. Two answers to the same request are the same exactly if these are equal."""

    parts: tuple[tuple[str, str], ...]
    """(channel, text) in the order in which they came: `reasoning`, `content`, `tool 0` (its name, then arguments)."""
    finish: str
    prompt_tokens: int
    output_tokens: int
    flaws: tuple[str, ...] = ()
    """What no well-formed answer has: a missing end, an error event, a summary that is not what was streamed."""

    @property
    def characters(self) -> int:
        """Length of everything that was said."""
        return sum(len(text) for _, text in self.parts)


class Usage(msgspec.Struct):
    """OpenAI's and Anthropic's names side by side."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def prompt(self) -> int:
        """All of the prompt: Anthropic counts what came from the cache apart, which differs from run to run."""
        cached = (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        return (self.prompt_tokens or self.input_tokens or 0) + cached

    @property
    def output(self) -> int:
        """Tokens of the answer."""
        return self.completion_tokens or self.output_tokens or 0


@dataclass
class Recorder:
    """Collects one answer. `text` adds to a channel; whatever a protocol says else is set directly."""

    parts: list[tuple[str, list[str]]] = field(default_factory=list)
    finish: str = ""
    usage: Usage | None = None
    ended: bool = False
    flaws: list[str] = field(default_factory=list)
    characters: int = 0
    identity: str = ""
    next_number: int = 0

    def text(self, channel: str, text: str | None) -> None:
        """More text of a channel."""
        if not text:
            return
        if not self.parts or self.parts[-1][0] != channel:
            self.parts.append((channel, []))
        self.parts[-1][1].append(text)
        self.characters += len(text)

    def check_identity(self, identity: str) -> None:
        """Whom an event says it belongs to; empty where it does not say."""
        if identity and self.identity and identity != self.identity:
            self.flaws.append(f"the stream's id became {identity} after {self.identity}")
        self.identity = identity or self.identity

    def check_number(self, number: int) -> None:
        """The number that an event carries: each is one more than the last."""
        if number != self.next_number:
            self.flaws.append(f"event {number} came where {self.next_number} was due")
        self.next_number = number + 1

    def set_finish(self, reason: str | None) -> None:
        """Why the answer ended; only one event may say."""
        if reason and self.finish:
            self.flaws.append(f"finished twice: {self.finish}, {reason}")
        self.finish = reason or self.finish

    def answer(self) -> Answer:
        """What was said, once nothing more comes."""
        flaws = list(self.flaws)
        if not self.ended:
            flaws.append("the end marker is missing")
        if not self.finish:
            flaws.append("no finish reason")
        if self.usage is None:
            flaws.append("no usage")
        usage = self.usage or Usage()
        parts = tuple((channel, "".join(texts)) for channel, texts in self.parts)
        return Answer(parts, self.finish, usage.prompt, usage.output, tuple(flaws))

    def text_by_channel(self) -> dict[str, str]:
        """All text by channel."""
        found: dict[str, str] = {}
        for channel, texts in self.parts:
            found[channel] = found.get(channel, "") + "".join(texts)
        return found
