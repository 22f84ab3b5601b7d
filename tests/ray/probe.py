"""`python probe.py ADDRESS`: for each line on standard input, a line with the load of every engine replica.

In a process of its own, so that the tests' process needs no Ray and the handle is configured as the application's are.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable

import msgspec
import ray
from ray import serve

from serve_app.protocol.messages import decode_info


async def answer(questions: asyncio.Queue[str | None]) -> None:
    engines = serve.get_deployment_handle("engine", "step")
    while await questions.get() is not None:
        answers = await engines.broadcast("info").results_async(timeout_s=5, return_exceptions=True)
        infos = [decode_info(one) for one in answers if isinstance(one, bytes)]
        loads = [{"replica_id": info.replica_id, **msgspec.structs.asdict(info.load)} for info in infos]
        print(json.dumps(loads), flush=True)


def read(put: Callable[[str | None], object]) -> None:
    for line in sys.stdin:
        put(line)
    put(None)


async def main() -> None:
    questions: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def put(question: str | None) -> None:
        loop.call_soon_threadsafe(questions.put_nowait, question)

    threading.Thread(target=read, args=(put,), daemon=True).start()
    await answer(questions)


if __name__ == "__main__":
    ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
    asyncio.run(main())
