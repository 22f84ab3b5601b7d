"""A Redis of the tests' own: without a file, on one address, gone with the block."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

SERVER = shutil.which("redis-server")
START_S = 10.0


@contextmanager
def running(address: str, port: int) -> Iterator[str]:
    """Its `address:port`, as `RAY_REDIS_ADDRESS` wants it. Raises `RuntimeError` where it does not start."""
    assert SERVER is not None
    command = [SERVER, "--bind", address, "--port", str(port), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([*command, "--protected-mode", "no"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not any("Ready to accept connections" in line for line in process.stdout):
            raise RuntimeError("redis-server has ended")
        socket.create_connection((address, port), START_S).close()
        yield f"{address}:{port}"
    finally:
        process.kill()
        process.communicate()
