"""The three requests of a rehearsal, asked of the whole service in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serve_app.config.profile import load_config
from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import fake_engine_config
from serve_app.rehearse import measure, setup
from tests.http.harness import MODEL, service

WRITES = {"turns": [{"think": "Well.", "say": "A", "ends": False}]}


def plan(url: str) -> setup.RehearsalPlan:
    config = load_config({"profile": "cpu-demo"}, [])
    port = int(url.rpartition(":")[2])
    return setup.RehearsalPlan("cpu-demo", config, 1, True, MODEL, Path("deploy.yaml"), port, MODEL, ())


def call(city: str) -> dict[str, object]:
    return {"think": "Well.", "calls": [{"name": "weather", "arguments": {"city": city}}]}


@pytest.mark.parametrize(
    ("turn", "ok", "is_proven", "told"),
    [
        (call("Oslo"), True, True, 'weather({"city": "Oslo"})'),
        (call("Rome"), False, True, "Wrong: arguments"),
        ({"think": "Well.", "say": "No."}, False, True, "Wrong: no tool call"),
        ({"think": "Well.", "say": "Er", "ends": False}, True, False, "tokens of noise"),
    ],
)
async def test_text_and_image_are_counted_and_a_tool_call_is_held_to_its_schema(
    turn: dict[str, object], ok: bool, is_proven: bool, told: str
) -> None:
    config = fake_engine_config({"script": [{"when": ["Weather"], "turns": [turn]}, WRITES]}, tokenizer=str(MODEL))

    def engine(sink: StepSink) -> FakeEngine:
        return FakeEngine(config, sink)

    async with service({"a": engine}) as running:
        found = await asyncio.to_thread(measure.three_requests, plan(running.url))
    text, image, tool = found
    assert (text.ok, text.said) == (True, "32 tokens")
    assert (image.ok, "tokens of prompt for 448 x 448 pixels" in image.said) == (True, True), image.said
    assert (tool.ok, tool.is_proven) == (ok, is_proven), tool.said
    assert told in tool.said
