"""`loadtest mock`: the mock server as a command."""

from __future__ import annotations

import asyncio
import os
import signal

from loadtest.errors import UsageError
from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer


async def mock(config: MockConfig, port: int) -> int:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = MockServer(config, port=port)
    try:
        await server.start()
    except OSError as bad:
        raise UsageError(
            f"cannot listen on port {port} ({os.strerror(bad.errno or 0)})",
            "Choose another with --port, or 0 for a free one",
        ) from bad
    async with server:
        print(f"mock server at {server.url}, model {config.model}", flush=True)
        await stop.wait()
    return 0
