"""Our OpenAPI document and what the service answers agree: schemathesis makes requests of the one and judges by the
other."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import sys
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.ingress import own_routes
from serve_app.ingress.own_routes import OwnFacts
from tests.http.harness import NAME, service

EXAMPLES = os.environ.get("EXAMPLES", "4")
"""Requests per route; `EXAMPLES=100 python -m pytest tests/http/test_openapi.py` tries more."""


@pytest.mark.timeout(1800)
async def test_what_is_served_is_what_the_document_describes(tmp_path: Path) -> None:
    config = FakeEngineConfig(plain_token_ids=(40, 90))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", "--phases", "fuzzing", "--max-examples", EXAMPLES),
        # A schema cannot say all that a request must be (a model that exists, a prompt that fits): it may be refused.
        *("--generation-deterministic", "--no-color", "--exclude-checks", "positive_data_acceptance"),
    ]
    async with service({"a": lambda sink: FakeEngine(config, sink)}) as running:
        # schemathesis waits 10 s for the document: on a busy machine it takes longer, the first time
        async with httpx.AsyncClient(base_url=running.url, timeout=120, trust_env=False) as http:
            await http.get("/openapi.json")
        process = await asyncio.create_subprocess_exec(
            *command,
            f"{running.url}/openapi.json",
            cwd=tmp_path,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-6000:]
    tested = re.search(rb"Tested: (\d+)", said)
    assert tested is not None and int(tested[1]) >= 14, said.decode()[-2000:]


def test_describing_the_app_stops_no_stream() -> None:
    """It takes half a second, and anybody may ask: FastAPI runs what is not a coroutine in a thread."""
    app = FastAPI()
    own_routes.add(app, OwnFacts(NAME, "0.33.0", tuple))
    (route,) = (route for route in app.routes if getattr(route, "path", "") == "/openapi.json")
    assert isinstance(route, APIRoute)
    assert not inspect.iscoroutinefunction(route.endpoint)
