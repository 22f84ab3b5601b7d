"""Records one response of any API: text by channel, finish reason and token counts.

An `Answer` holds everything that a client could tell apart, and nothing else. It does not hold how the text was split
into events (a resumed stream may bring two tokens in one event), nor random ids. But the id must not change within a
stream, sequence numbers must not skip or repeat, and a closing summary must equal what was streamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.api.event_schema import Usage


@dataclass(frozen=True)
class Answer:
    """One answer. Two answers to the same request are the same exactly if these are equal."""

    parts: tuple[tuple[str, str], ...]
    """(channel, text) in order of arrival. Channels: `reasoning`, `content`, `tool 0` (name, then arguments)."""
    finish: str
    prompt_tokens: int
    output_tokens: int
    flaws: tuple[str, ...] = ()
    """Violations of the protocol: a missing end, an error event, a closing summary that differs from the stream."""

    @property
    def characters(self) -> int:
        """Length of all text."""
        return sum(len(text) for _, text in self.parts)


def prompt_tokens(usage: Usage) -> int:
    """All prompt tokens. Anthropic's API counts cached tokens separately; how many are cached differs between runs."""
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return (usage.prompt_tokens or usage.input_tokens or 0) + cached


@dataclass
class Recorder:
    """Collects one response, event by event."""

    parts: list[tuple[str, list[str]]] = field(default_factory=list)
    finish: str = ""
    usage: Usage | None = None
    ended: bool = False
    flaws: list[str] = field(default_factory=list)
    characters: int = 0
    id: str = ""
    next_sequence_number: int = 0

    def text(self, channel: str, text: str | None) -> None:
        """Add text to a channel."""
        if not text:
            return
        if not self.parts or self.parts[-1][0] != channel:
            self.parts.append((channel, []))
        self.parts[-1][1].append(text)
        self.characters += len(text)

    def check_id(self, id_: str | None) -> None:
        """Note a change of the response's id. Events without one are skipped."""
        if id_ and self.id and id_ != self.id:
            self.flaws.append(f"the stream's id became {id_} after {self.id}")
        self.id = id_ or self.id

    def check_sequence_number(self, number: int) -> None:
        """Note a sequence number that does not follow the one before."""
        if number != self.next_sequence_number:
            self.flaws.append(f"event {number} where {self.next_sequence_number} was expected")
        self.next_sequence_number = number + 1

    def set_finish(self, reason: str | None) -> None:
        """Set the finish reason; only one event may have one."""
        if reason and self.finish:
            self.flaws.append(f"finished twice: {self.finish}, {reason}")
        self.finish = reason or self.finish

    def answer(self) -> Answer:
        """The answer, once the response has ended."""
        flaws = list(self.flaws)
        if not self.ended:
            flaws.append("the end marker is missing")
        if not self.finish:
            flaws.append("no finish reason")
        if self.usage is None:
            flaws.append("no usage")
        usage = self.usage or Usage()
        output_tokens = usage.completion_tokens or usage.output_tokens or 0
        parts = tuple((channel, "".join(texts)) for channel, texts in self.parts)
        return Answer(parts, self.finish, prompt_tokens(usage), output_tokens, tuple(flaws))

    def text_by_channel(self) -> dict[str, str]:
        """All text by channel."""
        found: dict[str, str] = {}
        for channel, texts in self.parts:
            found[channel] = found.get(channel, "") + "".join(texts)
        return found
