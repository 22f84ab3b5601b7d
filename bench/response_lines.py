"""Sends a request and yields the lines of its response as they arrive, for tools that measure when events come."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, Final

DATA: Final = b"data: {"
"""How an event with JSON begins."""
DONE: Final = b"data: [DONE]"
COMMENT: Final = b":"


class RequestFailed(Exception):
    """The request got no complete response."""


def response_lines(url: str, path: str, body: Mapping[str, Any], timeout_s: float) -> Iterator[bytes]:
    """Lines of the response, without empty ones and comments. Raises `RequestFailed`.

    Comments are keep-alives: they show that the ingress lives, not that the engine does.
    """
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=timeout_s)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RequestFailed(f"{response.status}: {response.read(500)!r}")
        for line in response:
            if line.strip() and not line.startswith(COMMENT):
                yield line
    except (OSError, http.client.HTTPException) as error:
        raise RequestFailed(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
