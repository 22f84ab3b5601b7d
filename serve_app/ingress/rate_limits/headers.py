"""The response headers that tell a client how it stands with its limits, as each API names them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from serve_app.ingress.error_format import ApiStyle
from serve_app.ingress.rate_limits.limiter import Standing

Headers = list[tuple[bytes, bytes]]


def limit_headers(api: ApiStyle, standings: Sequence[Standing], now: datetime) -> Headers:
    """The headers of an answer. `now` is in UTC."""
    found: list[tuple[str, str]] = []
    for one in standings:
        if api is ApiStyle.ANTHROPIC:
            names = [f"anthropic-ratelimit-{one.kind.value}-{part}" for part in ("limit", "remaining", "reset")]
            reset = _rfc3339(now + timedelta(seconds=math.ceil(one.full_in_s)))
        else:
            names = [f"x-ratelimit-{part}-{one.kind.value}" for part in ("limit", "remaining", "reset")]
            reset = _duration(math.ceil(one.full_in_s))
        found += zip(names, (str(one.limit), str(one.remaining), reset), strict=True)
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in found]


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _duration(seconds: int) -> str:
    """As OpenAI writes it: `6m0s`, `12s`."""
    return f"{seconds // 60}m{seconds % 60}s" if seconds >= 60 else f"{seconds}s"
