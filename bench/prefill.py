"""`python -m bench.prefill --url http://127.0.0.1:8000 --tokens 52000`: a long prompt, and small requests beside it.

Says how long the long prompt waits for its first token, and what small streams see meanwhile: their first tokens and
the gaps between their events.
"""

from __future__ import annotations

import argparse
import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

TIMEOUT_S = 600.0
SMALL = "Count from 3 to 30."


@dataclass
class Seen:
    """What the small streams saw."""

    ttft_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)


def stream(url: str, model: str, prompt: str, max_tokens: int) -> Iterator[float]:
    """Seconds from the one event to the next, the first from the request. Raises `RuntimeError` on an error."""
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "127.0.0.1", where.port, timeout=TIMEOUT_S)
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    last = time.monotonic()
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(500)!r}")
        for line in response:
            if line.startswith(b"data: {"):
                now = time.monotonic()
                yield now - last
                last = now
    finally:
        connection.close()


def small_streams(url: str, model: str, over: threading.Event, seen: Seen) -> None:
    """One small stream behind the other, until the long prompt is through."""
    while not over.is_set():
        waits = list(stream(url, model, SMALL, 64))
        seen.ttft_s += waits[:1]
        seen.gap_s += waits[1:]


def share(values: list[float], part: float) -> str:
    """A percentile in seconds, or a dash if there is none."""
    return f"{sorted(values)[min(len(values) - 1, int(part * len(values)))]:.2f}" if values else "-"


def main() -> None:
    """Runs it once. The prompt is digits: one token each in the demo's tokenizer."""
    parser = argparse.ArgumentParser(prog="python -m bench.prefill", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="step3p7-flash")
    parser.add_argument("--tokens", type=int, default=52_000, help="of the long prompt")
    parser.add_argument("--beside", type=int, default=4, help="small streams at a time")
    options = parser.parse_args()
    over, seen = threading.Event(), [Seen() for _ in range(options.beside)]
    prompt = (str(time.time_ns()) + "1234567890" * (options.tokens // 10))[: options.tokens]
    with ThreadPoolExecutor(options.beside + 1) as pool:
        crowd = [pool.submit(small_streams, options.url, options.model, over, s) for s in seen]
        try:
            first_s = next(stream(options.url, options.model, prompt, 1))
        finally:
            over.set()
        for one in crowd:
            one.result()
    ttft, gaps = [x for s in seen for x in s.ttft_s], [x for s in seen for x in s.gap_s]
    print(f"long prompt: first token after {first_s:.1f} s")
    print(f"small ones ({len(ttft)}): first token p50 {share(ttft, 0.5)} s, max {share(ttft, 1)} s")
    print(f"gaps of their streams: p50 {share(gaps, 0.5)} s, p99 {share(gaps, 0.99)} s, max {share(gaps, 1)} s")


if __name__ == "__main__":
    main()
