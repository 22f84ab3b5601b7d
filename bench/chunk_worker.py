"""One side of `python -m bench time-split`: the service of the tree on PYTHONPATH, in this process, without sockets.

For each line of standard input it streams answers, and prints the CPU seconds that took, and how many chunks were sent:
a busy machine puts steps together. How many answers at a time, and of how many steps, are its arguments. It uses only
what older versions of this repository have too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
from typing import Any

from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from tests.http.harness import NAME, Service, service

GAP_S = 0.01
"""Between the engine's steps: time enough to send what a step gave, as a rule."""


async def stream(running: Service, chunks: int) -> int:
    """Take one streamed answer, as a client that reads at once. Returns how many pieces it had."""
    message = {"role": "user", "content": "hello"}
    asked_for = {"max_tokens": chunks, "stream": True, "ignore_eos": True}
    body = json.dumps({"model": NAME, "messages": [message], **asked_for}).encode()
    asked = [{"type": "http.request", "body": body, "more_body": False}]
    pieces = 0

    async def receive() -> Any:
        if asked:
            return asked.pop()
        await asyncio.Event().wait()
        raise RuntimeError

    async def send(message: Any) -> None:
        nonlocal pieces
        pieces += message["type"] == "http.response.body"

    headers = [(b"content-type", b"application/json"), (b"accept", b"*/*"), (b"user-agent", b"bench")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "root_path": ""}
    rest = {"scheme": "http", "http_version": "1.1", "server": ("x", 80), "client": ("127.0.0.1", 1)}
    await running.middleware({**scope, **rest, "headers": headers}, receive, send)
    return pieces


async def serve(streams: int, chunks: int) -> None:
    """Answer lines until there are none."""
    config = FakeEngineConfig(
        plain_token_ids=(40, 90), answer_tokens=(chunks, chunks), max_num_seqs=streams, gap_s=GAP_S
    )
    async with service({"a": lambda sink: FakeEngine(config, sink)}) as running:
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            gc.collect()
            before_s = time.process_time()
            pieces = await asyncio.gather(*(stream(running, chunks) for _ in range(streams)))
            spent_s = time.process_time() - before_s
            print(spent_s, sum(pieces), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
