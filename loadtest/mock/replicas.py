"""The mock's replicas: which one a request goes to, and what of its prompt is in that one's prefix cache.

A cache holds whole conversations, message by message, and never forgets. An answer is in it as soon as the client sends
it back behind the prompt that it belongs to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import count

import msgspec

from loadtest.mock.answers import BYTES_PER_TOKEN, MockConfig, MockRequest

SESSION_HEADERS = ("x-session-id", "x-claude-code-session-id", "session-id")
ANSWER = b'"role":"assistant"'


class MockReplicas:
    """The caches of all replicas."""

    def __init__(self, config: MockConfig) -> None:
        self._by_session = config.routing == "session"
        self._caches: list[set[bytes]] = [set() for _ in range(config.replicas)]
        self._turn = count()

    def serve(self, request: MockRequest, headers: Mapping[str, str]) -> tuple[str, int]:
        """The name of the replica that takes the request, and how many tokens of its prompt were in the cache."""
        name = next((headers[name] for name in SESSION_HEADERS if name in headers), request.prompt_cache_key)
        if self._by_session and name:
            number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) % len(self._caches)
        else:
            number = next(self._turn) % len(self._caches)
        return f"replica-{number}", _cached_tokens(self._caches[number], request.messages)


def _cached_tokens(cache: set[bytes], messages: Sequence[msgspec.Raw]) -> int:
    """Cached tokens of a prompt, which is in the cache afterwards."""
    prefix, cached_bytes, is_cached = hashlib.blake2b(digest_size=16), 0, True
    for message in messages:
        content = bytes(message)
        prefix.update(content)
        digest = prefix.digest()
        is_cached = is_cached and (digest in cache or (ANSWER in content[:40] and cached_bytes > 0))
        cached_bytes += len(content) if is_cached else 0
        cache.add(digest)
    return cached_bytes // BYTES_PER_TOKEN
