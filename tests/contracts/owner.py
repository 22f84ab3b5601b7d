"""A process that owns an engine and is then killed: `python owner.py ARGV...`. Prints a line per phase of the start."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from serve_app.engine.vllm import VllmEngine
from serve_app.protocol.messages import TokenDelta


def ignore_step(deltas: Sequence[TokenDelta]) -> None:
    del deltas


async def main() -> None:
    engine = VllmEngine(sys.argv[1:], ignore_step)
    await engine.start(lambda phase: print(phase, flush=True))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
