"""What a data set gives: prompts that do not know yet which API will carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]
"""Anything that goes into a request body as it is."""


@dataclass(frozen=True)
class DatasetSpec:
    """Which prompts."""

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
    """None: forced lengths for made-up prompts, as vLLM does."""
    extra_body: Mapping[str, Json] = field(default_factory=dict)
    session_header: str = "x-session-id"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to be: text, token ids or ready messages, and how long the answer shall be."""

    text: str = ""
    token_ids: Sequence[int] = ()
    """For the completions API, instead of text."""
    messages: Sequence[Mapping[str, Json]] = ()
    """Ready chat messages, instead of text. A later turn of a session gives only its own new messages."""
    prompt_tokens: int = 0
    """As the client counts them; 0 where it cannot."""
    output_tokens: int = 0
    kind: str = "all"
    images: Sequence[str] = ()
    """Data URLs, sent after the text as vLLM's benchmark does."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Fields of this request's body: tools, response_format ..."""
    at_s: float | None = None
    """When a trace says to send it, in seconds after its first request."""
    session: int = -1
    """Requests of one session run one after the other; -1 where there is none."""
    turn: int = 0
    think_s: float = 0.0
    """Pause between the previous turn's answer and this request."""
