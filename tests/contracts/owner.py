"""A process that owns an engine and is then killed: `python owner.py ARGV...`. Prints a line per phase of the start."""

from __future__ import annotations

import asyncio
import sys

from serve_app.engine.vllm import VllmEngine


async def main() -> None:
    engine = VllmEngine(sys.argv[1:], lambda deltas: None)
    await engine.start(lambda phase: print(phase, flush=True))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
