"""The process of the engines: replicas as in production, with their data channels, over engines that compute nothing.

Only what an ingress sees of an engine counts here, so that all of them may share a process.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import OrderedDict

import uvloop

from bench.many import child
from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.engine.replica import EngineReplica
from serve_app.engine.watchdog import WatchdogLimits

HOST = "127.0.0.1"
LETTERS = (32, 57)
"""Token ids of the demo's tokenizer: each is a letter, and none begins a tool call."""


class Engines:
    """The replicas that run now, the oldest first."""

    def __init__(self, config: FakeEngineConfig) -> None:
        self._config = config
        self._live: OrderedDict[str, EngineReplica] = OrderedDict()
        self._started = 0

    async def handle(self, command: child.Command) -> child.Reply:
        """Run as many as are asked for. All begin anew: none has channels of the run before."""
        for replica in self._live.values():
            await replica.stop()
        self._live.clear()
        for _ in range(command.engines):
            await self._add()
        return child.Reply(replicas=[await replica.info() for replica in self._live.values()])

    async def _add(self) -> None:
        self._started += 1
        name = f"engine-{self._started}"
        replica = EngineReplica(name, self._engine, WatchdogLimits(), HOST)
        await replica.start()
        self._live[name] = replica

    def _engine(self, sink: StepSink) -> FakeEngine:
        return FakeEngine(self._config, sink)


def main() -> None:
    """`python -m bench.many.engines --step-s 0.05 --think-end ID`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-s", type=float, required=True)
    parser.add_argument("--think-end", type=int, required=True)
    options = parser.parse_args()
    config = FakeEngineConfig(
        plain_token_ids=LETTERS,
        think_tokens=2,
        think_end_token_id=options.think_end,
        answer_tokens=(1 << 20, 1 << 20),
        gap_s=options.step_s,
        max_num_seqs=1024,
    )
    uvloop.run(_serve(config))


async def _serve(config: FakeEngineConfig) -> None:
    engines = Engines(config)
    await child.answer(engines.handle)
    await asyncio.sleep(0)


if __name__ == "__main__":
    main()
