"""Clients of the service: one request, a crowd of streams, and the longest silence that all of them saw."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 3600.0
COMMENT = b":"
ERROR = b'"error":'
"""How the data of an error event begins."""

Body = Mapping[str, Any]


class Lost(Exception):
    """A request that did not come to its end."""


@dataclass
class Pulse:
    """The longest time in which no client received anything, though one waited."""

    longest_s: float = 0.0
    _last_s: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def beat(self) -> None:
        """Something came."""
        with self._lock:
            now_s = time.monotonic()
            self.longest_s, self._last_s = max(self.longest_s, now_s - self._last_s), now_s


@dataclass(frozen=True)
class Ask:
    """One request. `path` below the endpoint; a body with `stream` is read event by event."""

    path: str
    body: Body


@dataclass
class Endpoint:
    """Where the service answers, and what its clients saw in this case."""

    port: int
    pulse: Pulse = field(default_factory=Pulse)
    lost: list[str] = field(default_factory=list)

    def ask(self, one: Ask) -> float:
        """Seconds to the first event (of the whole answer, where it is not streamed). Raises `Lost`."""
        began_s, first_s, last = time.monotonic(), None, b""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", one.path, json.dumps(one.body), {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise Lost(f"{response.status}: {response.read(300)!r}")
            for line in response:
                if line.strip() and not line.startswith(COMMENT):  # a comment says only that the ingress lives
                    self.pulse.beat()
                    first_s = first_s or time.monotonic() - began_s
                    if ERROR in line[:40]:  # vLLM ends such a stream with [DONE] all the same
                        raise Lost(f"an error in the stream: {line[:300]!r}")
                    last = line
            if one.body.get("stream") and b"[DONE]" not in last:
                raise Lost(f"the stream ends with {last[:200]!r}")
        except (OSError, http.client.HTTPException) as error:
            raise Lost(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        return first_s or time.monotonic() - began_s

    def try_ask(self, one: Ask) -> float | None:
        """The same; a request that is lost is kept in `lost`."""
        try:
            return self.ask(one)
        except Lost as error:
            self.lost.append(str(error))
            return None

    @contextlib.contextmanager
    def crowd(self, asks: Sequence[Ask], streams: int) -> Iterator[list[Future[int]]]:
        """So many clients that ask one of `asks` after the other until the end; their counts of finished requests."""
        over = threading.Event()

        def go_on(seed: int) -> int:
            rng, finished = random.Random(seed), 0
            while not over.is_set():
                finished += self.try_ask(_fresh(rng.choice(asks), rng)) is not None
                if self.lost:
                    over.wait(1.0)  # a service that refuses must not be hammered
            return finished

        with ThreadPoolExecutor(max(streams, 1)) as pool:
            clients = [pool.submit(go_on, number) for number in range(streams)]
            try:
                yield clients
            finally:
                over.set()


def _fresh(one: Ask, rng: random.Random) -> Ask:
    """The same with a prompt that is in no cache."""
    if "prompt" not in one.body:
        return one
    return Ask(one.path, {**one.body, "prompt": f"{rng.random()} {one.body['prompt']}"})
