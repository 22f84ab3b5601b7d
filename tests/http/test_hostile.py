"""Every hostile kind that needs no compiler, on each API, streamed and not: a 4xx in the API's own shape.

Those with grammars are in `test_structured_outputs.py`; what all of them cost is `python -m bench.hostile`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from bench.hostile.requests import MESSAGES, HostileRequest, with_hostile_images, with_numbers, with_prompts
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from tests.http.harness import NAME, service

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # Pillow's, from the size at which it doubts an image; it is ours to refuse it.
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

REQUESTS = [*with_numbers(), *with_prompts(), *with_hostile_images()]

SLOWEST_STEP_S = 30
"""Nobody is timed here: an image that explodes takes minutes, and gigabytes."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    config = FakeEngineConfig(plain_token_ids=(40, 90))
    async with (
        service({"a": lambda sink: FakeEngine(config, sink)}, max_body_bytes=64 << 20) as running,
        httpx.AsyncClient(base_url=running.url, timeout=180, trust_env=False) as client,
    ):
        yield client


async def ask(http: httpx.AsyncClient, hostile: HostileRequest, **fields: Any) -> httpx.Response:
    content = json.dumps({"model": NAME, **hostile.body, **fields}).encode()  # with NaN, as JavaScript would not
    return await asyncio.wait_for(
        http.post(hostile.path, content=content, headers={"content-type": "application/json"}), SLOWEST_STEP_S
    )


@pytest.mark.parametrize("hostile", REQUESTS, ids=lambda hostile: f"{hostile.path[4:]} {hostile.name}")
async def test_it_is_refused_in_the_shape_of_its_api(http: httpx.AsyncClient, hostile: HostileRequest) -> None:
    for fields in ({}, {"stream": True}):
        response = await ask(http, hostile, **fields)
        if hostile.may_be_served and response.status_code == 200:
            continue
        assert response.status_code in (400, 413), response.text[:300]
        body = response.json()
        error = body["error"]
        assert error["type"] == "invalid_request_error"
        assert len(error["message"]) < 600
        assert (body["type"] == "error") if hostile.path == MESSAGES else ("code" in error)
    harmless = await http.post("/v1/completions", json={"model": NAME, "prompt": "hello", "max_tokens": 2})
    assert harmless.status_code == 200


async def test_an_alias_is_refused_alike(http: httpx.AsyncClient) -> None:
    for hostile in REQUESTS:
        if hostile.name in ("10,000 stop strings", "1,000,000 stop_token_ids", "image of 60,000 x 1"):
            assert (await ask(http, hostile, model="gpt-4o")).status_code == 400
