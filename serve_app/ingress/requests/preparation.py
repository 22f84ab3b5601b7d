"""A request's body on its way to vLLM's server: decoded once, prepared for what vLLM can serve, encoded if changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve_app.ingress.requests import anthropic, chat, limits, responses
from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused

Prepare = Callable[[dict[str, Any], Edits], None]

PREPARED: dict[str, Prepare] = {
    "/v1/chat/completions": chat.prepare,
    "/tokenize": chat.prepare,  # so that it counts what would be sent
    "/v1/responses": responses.prepare,
    "/v1/messages": anthropic.prepare,
    "/v1/messages/count_tokens": anthropic.prepare,
}
"""Other routes hold nothing that vLLM does not take."""

WITH_BODY = frozenset({*PREPARED, "/v1/completions", "/detokenize"})
"""Routes whose requests are JSON objects."""


def prepare(path: str, request: dict[str, Any], edits: Edits) -> None:
    """Make the request, in place, one that vLLM serves. Raises `RequestRefused`, with the field at fault."""
    if None in request.values():
        # All three APIs let a field be null for "not set"; vLLM does for most of them only.
        for name in [name for name, entry in request.items() if entry is None]:
            del request[name]
        edits.changed = True
    variables = request.get("chat_template_kwargs")
    variables = variables if isinstance(variables, dict) else {}
    for name in ("messages", "tools"):
        if name in variables:  # vLLM hands these over itself, and fails on a second one
            field = f"chat_template_kwargs.{name}"
            raise RequestRefused(f"`{field}` cannot be set; use the request's own field.", param=field)
    limits.check(request)
    apply = PREPARED.get(path)
    if apply is not None:
        apply(request, edits)
