"""Which web pages may call this service from a browser (`ingress.allowed_origins`).

A browser sends a preflight first (OPTIONS, without the key), and shows a page only answers that name its origin. So
every answer has these headers, refusals too: otherwise a page could not read why it was refused. Nothing is allowed by
default: an endpoint without keys on a developer's machine would be open to every page that they visit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Headers = list[tuple[bytes, bytes]]

PARTS, KINDS = ("limit", "remaining", "reset"), ("requests", "tokens")
_LIMITS = [f"x-ratelimit-{part}-{kind}" for part in PARTS for kind in KINDS]
_LIMITS += [f"anthropic-ratelimit-{kind}-{part}" for part in PARTS for kind in KINDS]

EXPOSED = ", ".join(
    ("x-request-id", "request-id", "retry-after", "x-should-retry", "x-step-ignored", *_LIMITS)
).encode()
"""Response headers that a page may read: those that the vendors' SDKs use in a browser, what was left out of a request,
and how its key stands with its limits (`rate_limits/headers.py`)."""

METHODS = b"GET, HEAD, POST, OPTIONS"
MAX_AGE_S = b"600"


@dataclass(frozen=True)
class Cors:
    """`allowed_origins` as configured: `https://app.example`, `http://localhost:*` (any port), or `*` for all."""

    allowed_origins: tuple[str, ...] = ()

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may read our answers."""
        return any(_matches(allowed, origin) for allowed in self.allowed_origins)

    def headers(self, origin: str | None) -> Headers:
        """The headers of every answer to a request from this origin."""
        if not self.allowed_origins:
            return []
        if "*" in self.allowed_origins:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        headers: Headers = [(b"vary", b"Origin")]
        if origin is not None and self.allows(origin):
            headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
            headers.append((b"access-control-expose-headers", EXPOSED))
        return headers

    def preflight(self, asked_headers: str) -> Headers:
        """The further headers of the answer to an allowed preflight."""
        allowed = asked_headers.encode("latin-1") or b"authorization, content-type, x-api-key"
        return [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", allowed),
            (b"access-control-max-age", MAX_AGE_S),
        ]


def _matches(allowed: str, origin: str) -> bool:
    if allowed in ("*", origin):
        return True
    return allowed.endswith(":*") and re.fullmatch(re.escape(allowed[:-2]) + r"(:\d+)?", origin) is not None
