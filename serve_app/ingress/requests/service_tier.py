"""The class that a request asks for: OpenAI's and Anthropic's `service_tier`, and vLLM's `priority`.

A request may go below the class of its key, and never above it. vLLM's server takes the tier and does nothing with it:
`/v1/responses` answers with what was sent, the other APIs with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.service_class import ServiceClass
from serve_app.router.request_context import CURRENT
from serve_app.vllm_patches import vllm_api
from serve_app.vllm_patches.patching import Function, replace

FIELD: Final = "service_tier"

AT_MOST: Final[Mapping[str, ServiceClass]] = {
    "auto": ServiceClass.INTERACTIVE,
    "priority": ServiceClass.INTERACTIVE,
    "fast": ServiceClass.INTERACTIVE,
    "scale": ServiceClass.INTERACTIVE,
    "default": ServiceClass.STANDARD,
    "standard_only": ServiceClass.STANDARD,
    "flex": ServiceClass.BATCH,
}
"""The highest class that each name asks for. `standard_only` is Anthropic's, `auto` both's, the rest are OpenAI's."""

NAMES: Final = {ServiceClass.BATCH: "flex", ServiceClass.STANDARD: "default", ServiceClass.INTERACTIVE: "priority"}
"""What an answer calls each class: OpenAI's names."""


PRIORITY_HEADER: Final = "x-vllm-priority"


def take(
    request: dict[str, Any], edits: Edits, allowed: ServiceClass, priority_header: str = ""
) -> tuple[ServiceClass, str | None]:
    """The class that the request is served in, and its name for the answer where the request asked for a tier.

    The request's field, in place, becomes the tier that is used: `/v1/responses` answers with it. An unknown name is
    left out and named; it asks for nothing. So does a `priority_header` that is no number.
    """
    priority = request.get("priority")
    if (isinstance(priority, int) and priority > 0) or _is_lower(priority_header):
        allowed = min(allowed, ServiceClass.BATCH)
    asked = request.get(FIELD)
    if asked is None:
        return allowed, None
    most = AT_MOST.get(asked) if isinstance(asked, str) else None
    if most is None:
        del request[FIELD]
        edits.note(FIELD, str(asked)[:40])
        return allowed, None
    used = min(allowed, most)
    if asked != NAMES[used]:
        request[FIELD] = NAMES[used]
        edits.changed = True
    return used, NAMES[used]


def _is_lower(priority: str) -> bool:
    try:
        return int(priority) > 0  # as vLLM reads it: a higher number goes later
    except ValueError:
        return False


def use() -> None:
    """Let vLLM's whole answers name the tier, in this process. Calling it again changes nothing."""
    replace(vllm_api.CHAT, name_tier)
    replace(vllm_api.COMPLETION, name_tier)


def name_tier(original: Function, _: ModuleType) -> Function:
    """Set the field that vLLM's response has and leaves empty. Its chunks of a stream have none."""

    async def create(self: Any, *args: Any, **named: Any) -> Any:
        answer = await original(self, *args, **named)
        context = CURRENT.get()
        if context is not None and context.service_tier is not None and hasattr(answer, FIELD):
            answer.service_tier = NAMES[context.share.service_class]
        return answer

    return create
