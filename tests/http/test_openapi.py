"""Our OpenAPI document and what the service answers agree: schemathesis makes requests of the one and judges by the
other."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from tests.http.harness import service

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
