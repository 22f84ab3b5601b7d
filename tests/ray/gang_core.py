"""`python gang_core.py ADDRESS OWNER`: stands in for the engine core of a gang, which starts its workers as Ray actors.

As vLLM's Ray executor does, it gives them its own environment and has them load vLLM's plugins. Prints the process ids
of the workers; then each line of standard input has a worker do something.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import ray

from serve_app.engine.gang import OWNER_VARIABLE


class Worker:
    """A worker's process, as far as its owner can tell."""

    def begin(self, env: dict[str, str]) -> int:
        for name, value in env.items():
            os.environ.setdefault(name, value)
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        return os.getpid()

    def fail(self) -> None:
        logging.getLogger("vllm").error("RayWorkerProc failed: %s", "no kernel image")

    def spin(self) -> None:
        while True:
            pass


def main() -> None:
    ray.init(address=sys.argv[1], log_to_driver=False)
    env = {**os.environ, OWNER_VARIABLE: sys.argv[2]}
    workers: list[Any] = [ray.remote(Worker).options(num_cpus=0.1).remote() for _ in range(2)]
    print(json.dumps(ray.get([worker.begin.remote(env) for worker in workers])), flush=True)
    for line in sys.stdin:
        number, what = line.split()
        getattr(workers[int(number)], what).remote()


if __name__ == "__main__":
    main()
