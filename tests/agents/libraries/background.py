"""The service over one scripted engine, in a thread of its own: clients are other processes, and tests wait on them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import fake_engine_config
from tests.agents.libraries.script import SCRIPT
from tests.http.harness import FLAGS, MODEL, Service, service

MAX_MODEL_LEN = 65536
START_TIMEOUT_S = 120


@contextlib.contextmanager
def background_service() -> Iterator[str]:
    """The address of a service that says what `SCRIPT` says."""
    facts = {"script": SCRIPT, "max_model_len": MAX_MODEL_LEN, "tokens_per_step": 4}
    argv = [
        str(MAX_MODEL_LEN) if before == "--max-model-len" else flag
        for before, flag in zip(["", *FLAGS[:-1]], FLAGS, strict=True)
    ]
    started: Future[Service] = Future()
    over = asyncio.Event()

    async def serve() -> None:
        engine = {"a": lambda sink: FakeEngine(fake_engine_config(facts, tokenizer=str(MODEL)), sink)}
        try:
            async with service(engine, argv=argv, max_body_bytes=16 << 20) as running:
                loop.append(asyncio.get_running_loop())
                started.set_result(running)
                await over.wait()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    loop: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield started.result(START_TIMEOUT_S).url
    finally:
        if loop:
            loop[0].call_soon_threadsafe(over.set)
        thread.join()
