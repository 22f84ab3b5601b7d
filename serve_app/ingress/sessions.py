"""Which session a request belongs to: the conversation, or the run of an agent, that its client names.

Agents and SDKs name it in headers and fields of their own, so no client needs to be configured. The first of these that
has a value counts (`docs/clients.md` says who sends what):

1. a header of `HEADERS`, in that order;
2. a field of the body: `session_id` (vLLM's, OpenRouter's), `vllm_xargs.session_id`, `prompt_cache_key`, the session in
   `metadata.user_id` (Claude Code before 2.1.86), `metadata.session_id`;
3. the user: `safety_identifier`, `user`, `metadata.user_id`. A user is not a session, but a user's requests have more
   in common than those of strangers.

Child agents share the session of the agent that started them: Claude Code and Codex send one session id for all, beside
ids of each agent (`x-claude-code-agent-id`; Codex' `thread-id`, which counts only where nothing else is sent). OpenCode
gives each child a session of its own and sends its parent's beside it, so that counts first.
`x-client-request-id` does not count: Codex sends its thread's id, OpenAI's SDKs a new one with each request.
`previous_response_id` cannot: nothing is stored here, and a request with one is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from serve_app.router.request_context import Session

HEADERS = (
    "x-parent-session-id",  # OpenCode's, of a child agent whose own session is in `x-session-id`
    "x-session-id",  # who sets it means it: but for a child's, no agent's own header overrides it
    "x-claude-code-session-id",
    "session-id",
    "session_id",  # Codex before it had hyphens
    "x-session-affinity",
    "x-opencode-session",
    "x-amp-thread-id",
    "x-litellm-session-id",
    "x-grok-conv-id",
    "thread-id",
)

MAX_NAME_CHARS = 128
"""Of a session's name. It is logged, and kept as long as its requests run; UUIDs have 36."""

MAX_USER_ID_CHARS = 4096
"""Of a `metadata.user_id` that is searched for a session. Claude Code's have some 200."""

IN_USER_ID = re.compile(r"_session_([0-9A-Za-z-]+)$")
"""`user_<hash>_account_<id>_session_<uuid>`."""


def find(headers: Mapping[str, str], request: Mapping[str, Any]) -> Session | None:
    """The session of a request, from its headers (by names in lower case) and its decoded body."""
    for source in HEADERS:
        if name := headers.get(source, "").strip():
            return Session(_bounded(name), source)
    for source, value in _fields(request):
        if isinstance(value, str) and (name := value.strip()):
            return Session(_bounded(name), source)
    for source, value in _users(request):
        if isinstance(value, str) and (name := value.strip()):
            # It may be somebody's address, and sessions are logged.
            return Session(_digest(name), source)
    return None


def _fields(request: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    metadata = _object(request, "metadata")
    yield "session_id", request.get("session_id")
    yield "vllm_xargs.session_id", _object(request, "vllm_xargs").get("session_id")
    yield "prompt_cache_key", request.get("prompt_cache_key")
    yield "metadata.user_id session", _session_of_user_id(metadata.get("user_id"))
    yield "metadata.session_id", metadata.get("session_id")


def _users(request: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "safety_identifier", request.get("safety_identifier")
    yield "user", request.get("user")
    yield "metadata.user_id", _object(request, "metadata").get("user_id")


def _object(request: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = request.get(name)
    return value if isinstance(value, dict) else {}


def _session_of_user_id(user_id: object) -> object:
    """The session that Claude Code puts into its user id, as JSON or, in older versions, at its end."""
    if not isinstance(user_id, str) or len(user_id) > MAX_USER_ID_CHARS:
        return None
    if user_id.lstrip().startswith("{"):
        try:
            decoded = msgspec.json.decode(user_id)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
        return decoded.get("session_id")
    found = IN_USER_ID.search(user_id)
    return found.group(1) if found else None


def _bounded(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else _digest(name)


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
