"""What keys cost: an engine's time and its energy, divided, and nothing lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from bench.routing import virtual_time
from serve_app.engine.activity import energy_reader
from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.engine.key_costs import KeyCosts
from serve_app.engine.metrics import declared
from serve_app.engine.replica import EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.protocol.key_labels import MAX_KEYS, NO_KEY, OTHER, KeyLabels
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, RequestSpec, encode_request, encode_tokens
from tests.unit.test_gauges import Recorded, recorded


def total(record: Recorded, name: str, key: str | None = None) -> float:
    return sum(value for one, value, tags in record if one == name and key in (None, tags.get("key")))


async def test_gpu_seconds_are_the_engines_time_times_its_gpus() -> None:
    costs = KeyCosts(8, lambda: None)
    record = recorded(declared(costs))
    costs.set_totals({"alice": 0.25})
    costs.set_totals({"alice": 0.5, "": 0.25})
    assert total(record, "step_key_gpu_seconds", "alice") == 4.0
    assert total(record, "step_key_gpu_seconds", NO_KEY) == 2.0


async def test_energy_is_divided_by_time_and_idle_energy_is_nobodys() -> None:
    costs = KeyCosts(1, lambda: None)
    record = recorded(declared(costs))
    costs.charge(1000.0, 100.0)
    costs.set_totals({"alice": 3.0, "bob": 1.0})
    costs.charge(1800.0, 108.0)
    costs.charge(1850.0, 118.0)
    costs.set_totals({"alice": 3.0, "bob": 2.0})
    costs.charge(None, 128.0)  # a driver that does not answer: this stretch is not known
    costs.charge(2000.0, 138.0)
    assert total(record, "step_key_energy_joules", "alice") == pytest.approx(300.0)
    assert total(record, "step_key_energy_joules", "bob") == pytest.approx(100.0)
    assert total(record, "step_idle_energy_joules") == pytest.approx(450.0)


def test_labels_are_bounded() -> None:
    labels = KeyLabels()
    given = {labels.label(f"key-{number}") for number in range(10 * MAX_KEYS)}
    assert len(given) == MAX_KEYS + 1
    assert OTHER in given
    assert labels.label("") == NO_KEY
    assert labels.label("key-0") == "key-0"


class NoEnergy(Exception):
    """As NVML's error."""


def nvml(*millijoules: int | None) -> SimpleNamespace:
    def used(handle: int) -> int:
        value = millijoules[handle]
        if value is None:
            raise NoEnergy
        return value

    return SimpleNamespace(
        NVMLError=NoEnergy,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(millijoules),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=used,
    )


def test_the_energy_of_all_gpus_is_read_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert energy_reader(nvml(1500, 2500))() == 4.0
    assert energy_reader(nvml(1500, None))() is None


def test_the_time_of_two_keys_adds_up_to_the_engines() -> None:
    """Through a replica, in virtual time: prompts, decoding together and alone, and idle time between."""
    spent, busy_s = virtual_time.run(_spent_and_busy())
    assert set(spent) == {"alice", "bob"}
    assert sum(spent.values()) == pytest.approx(busy_s, rel=0.02)
    assert spent["alice"] > 2 * spent["bob"]


async def _spent_and_busy() -> tuple[dict[str, float], float]:
    config = FakeEngineConfig(gap_s=0.01, prefill_tokens_per_s=4000.0, max_num_batched_tokens=256, answer_tokens=(9, 9))
    clock = asyncio.get_running_loop().time
    replica = EngineReplica("a", lambda sink: FakeEngine(config, sink), WatchdogLimits(), clock=clock)
    await replica.start()
    frames = replica.frames("a", "ingress")
    await anext(frames)
    drained = asyncio.create_task(_drain(frames))
    loop = asyncio.get_running_loop()

    async def run(name: str, client: str, prompt_tokens: int, answer_tokens: int) -> None:
        spec = RequestSpec(
            name, encode_tokens([1] * prompt_tokens), answer_tokens, 0, True, [], 0, [], client=client, session=name
        )
        request = AttemptRequest(WIRE_VERSION, name, "ingress", spec, [], prefill_tokens=prompt_tokens)
        await replica.run_attempt("a", encode_request(request))

    busy_s = 0.0
    for number in range(2):
        begun_s = loop.time()
        await asyncio.gather(run(f"{number}a", "alice", 600, 30), run(f"{number}b", "bob", 40, 10))
        busy_s += loop.time() - begun_s
        await asyncio.wait({loop.create_future()}, timeout=0.2)
    spent = dict(replica.figures().engine_s)
    drained.cancel()
    await replica.stop()
    return spent, busy_s


async def _drain(frames: object) -> None:
    async for _ in frames:  # type: ignore[attr-defined]
        pass
