"""Options of a data set, and the prompts that it gives, which do not depend on the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]
"""Any JSON value."""


@dataclass(frozen=True)
class AgentsSpec:
    """Options of the data set `agents`, beside those that it shares with others."""

    scale: float = 1.0
    """Multiplies all token counts."""
    total_sessions: int = 0
    """0: as many as the load needs."""
    session_ids: str = "mixed"
    """One of `SessionIds`."""
    programs: int = 3
    """Different system prompts."""
    child_ratio: float = 0.44
    """Share of sessions that have child agents."""


@dataclass(frozen=True)
class DatasetSpec:
    """The data set and its options. Lengths are in tokens."""

    dataset: str = "random"
    file: str | None = None
    num_prompts: int = 0
    """0: as many as the load needs."""
    input_len: int = 1024
    output_len: int = 128
    input_range_ratio: float = 0.0
    output_range_ratio: float = 0.0
    prefix_len: int = 0
    prefixes: int = 10
    turns: int = 4
    think_s: float = 0.0
    images: int = 1
    image_size: tuple[int, int] = (448, 448)
    seed: int = 0
    ignore_eos: bool | None = None
    """None: True for made-up prompts (`FORCED_LENGTH`), as vLLM's benchmark does."""
    extra_body: Mapping[str, Json] = field(default_factory=dict)
    session_header: str = "x-session-id"
    agents: AgentsSpec = field(default_factory=AgentsSpec)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: text, token ids or chat messages, and the planned lengths."""

    text: str = ""
    token_ids: Sequence[int] = ()
    """For the completions API, instead of text."""
    messages: Sequence[Mapping[str, Json]] = ()
    """Chat messages, instead of text. A later turn of a session has only its own new messages."""
    prompt_tokens: int = 0
    """As the client counts them; 0 where it is not known."""
    output_tokens: int = 0
    kind: str = "all"
    images: Sequence[str] = ()
    """Data URLs; they follow the text, as in vLLM's benchmark."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Further fields of this request's body: tools, response_format ..."""
    at_s: float | None = None
    """Start time from a trace, in seconds after its first request."""
    session: int = -1
    """Requests of one session run in sequence; -1 for no session."""
    turn: int = 0
    think_s: float = 0.0
    """Pause in s between the previous turn's answer and this request."""
    start_after_s: float = 0.0
    """Pause in s before a session's first turn, which has no pause of the kind above."""
    parent: int = -1
    """The session whose conversation so far this one begins with; both run in the prompts' order. -1: none."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of this request."""
    shared_prefix: str = ""
    """Names what all sessions of a program begin with; empty where nothing is known of it."""
    shared_prefix_tokens: int = 0
