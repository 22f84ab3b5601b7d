"""How a session of a coding agent names itself: the headers and body fields that the CLIs send (docs/clients.md).

A child agent's requests have its parent's session ID in Claude Code; in Codex they have it beside a thread and a
`prompt_cache_key` of their own; in OpenCode a child is a session of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from loadtest.data.prompt import Json


class SessionIds(Enum):
    """What names a session; the values are those of `--session-ids`."""

    CLAUDE_CODE = "claude-code"
    CODEX = "codex"
    OPENCODE = "opencode"
    MIXED = "mixed"
    """The three CLIs in turn."""
    PROMPT_CACHE_KEY = "prompt-cache-key"
    NONE = "none"


CLIS = (SessionIds.CLAUDE_CODE, SessionIds.CODEX, SessionIds.OPENCODE)


@dataclass(frozen=True)
class SessionName:
    """What names one session in each of its requests."""

    headers: Mapping[str, str]
    body: Mapping[str, Json]


def session_name(kind: SessionIds, number: int, own: str, root: str) -> SessionName:
    """The name of a session with the ID `own`; `root` is that of the session that no other has started.

    `number` is the position of the root session, by which `MIXED` takes turns.
    """
    if kind is SessionIds.MIXED:
        kind = CLIS[number % len(CLIS)]
    match kind:
        case SessionIds.CLAUDE_CODE:
            return SessionName({"x-claude-code-session-id": root}, {})
        case SessionIds.CODEX:
            return SessionName({"session-id": root, "thread-id": own}, {"prompt_cache_key": own})
        case SessionIds.OPENCODE:
            return SessionName({"x-session-id": own}, {})
        case SessionIds.PROMPT_CACHE_KEY:
            return SessionName({}, {"prompt_cache_key": own})
        case _:
            return SessionName({}, {})
