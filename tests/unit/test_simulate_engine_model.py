"""The simulator's engine takes the steps that the fake engine takes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from bench.routing import virtual_time
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.protocol.messages import AttemptRequest, RequestSpec, TokenDelta, encode_tokens
from serve_app.simulate.engine_model import EngineModel, EngineSpec, ModelRequest

SPEC = EngineSpec(
    prefill_tokens_per_s=4000.0, gap_s=0.02, tokens_per_step=3, max_num_seqs=8, max_num_batched_tokens=512
)
Arrival = tuple[float, int, int]
"""Seconds, prompt tokens, output tokens."""
Times = dict[str, tuple[float, float]]
"""First token and end of each request."""


def arrivals(seed: int, number: int = 60) -> list[Arrival]:
    draw = random.Random(seed)
    at_s, found = 0.0, []
    for _ in range(number):
        at_s += draw.expovariate(4.0)
        found.append((at_s, draw.randint(1, 3000), draw.randint(1, 60)))
    return found


def modelled(spec: EngineSpec, asked: Sequence[Arrival]) -> Times:
    model, first_s, times = EngineModel(spec), dict[str, float](), Times()

    def run_until(now_s: float) -> None:
        while model.next_end_s <= now_s:
            end = model.finish()
            first_s.update({one.name: end.at_s for one in end.first_tokens})
            times.update({one.name: (first_s[one.name], end.at_s) for one in end.ended})

    for number, (at_s, prompt, output) in enumerate(asked):
        run_until(at_s)
        model.add(ModelRequest(str(number), prompt, output), at_s)
    while model.unfinished:
        run_until(model.next_end_s)
    return times


def faked(spec: EngineSpec, asked: Sequence[Arrival]) -> Times:
    config = FakeEngineConfig(
        answer_tokens=(1 << 20, 1 << 20),
        gap_s=spec.gap_s,
        tokens_per_step=spec.tokens_per_step,
        max_num_seqs=spec.max_num_seqs,
        prefill_tokens_per_s=spec.prefill_tokens_per_s,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        kv_cache_tokens=spec.kv_cache_tokens,
    )

    async def run() -> Times:
        clock = asyncio.get_running_loop().time
        first_s: dict[str, float] = {}
        times: Times = {}

        def sink(deltas: Sequence[TokenDelta]) -> None:
            for delta in deltas:
                first_s.setdefault(delta.attempt_id, clock())
                if delta.finish_reason is not None:
                    times[delta.attempt_id] = (first_s[delta.attempt_id], clock())

        engine = FakeEngine(config, sink)
        await engine.start(lambda _: None)

        async def ask(number: int, at_s: float, prompt: int, output: int) -> None:
            await asyncio.sleep(at_s - clock())
            tokens = encode_tokens([number] * prompt)
            request = RequestSpec(str(number), tokens, output, 0, True, [], 0, [])
            await engine.run(AttemptRequest(1, str(number), "ingress", request, []))

        await asyncio.gather(*(ask(number, *one) for number, one in enumerate(asked)))
        await engine.shutdown()
        return times

    return virtual_time.run(run())


@pytest.mark.parametrize("seed", range(5))
def test_the_model_takes_the_steps_of_the_fake_engine(seed: int) -> None:
    asked = arrivals(seed)
    expected, got = faked(SPEC, asked), modelled(SPEC, asked)
    assert {name: pytest.approx(times, abs=1e-6) for name, times in expected.items()} == got


def test_the_model_waits_for_room_in_the_cache_as_the_fake_engine_does() -> None:
    spec = EngineSpec(
        prefill_tokens_per_s=4000.0, gap_s=0.02, max_num_seqs=8, max_num_batched_tokens=512, kv_cache_tokens=256 * 24
    )
    asked = [(at_s, prompt // 256 * 256 + 255, 1) for at_s, prompt, _ in arrivals(7)]
    expected, got = faked(spec, asked), modelled(spec, asked)
    assert [times[1] for times in got.values()] == pytest.approx([times[1] for times in expected.values()], rel=0.05)
