"""A grammar that fails in a real engine ends its own request with an error; whoever is beside it goes on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from vllm.tokenizers import get_tokenizer

from tests.contracts.harness import MODEL, MTP_ARGV, START_TIMEOUT_S, Subject, start_vllm

pytestmark = [
    pytest.mark.usefixtures("engine_environment"),
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(START_TIMEOUT_S),
]

ERROR = 3
"""vLLM's `FinishReason.ERROR`."""

BESIDE_TOKENS = 400

TAG = {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}]}

CANNOT_COMPILE: list[tuple[str, dict[str, Any]]] = [
    ("xgrammar", {"regex": "("}),
    ("xgrammar", {"grammar": "root ::= missing"}),
    ("xgrammar", {"json": '{"type": "object", "properties": 3}'}),
    ("xgrammar", {"structural_tag": "{"}),
    ("guidance", {"structural_tag": json.dumps(TAG)}),  # KeyError 'triggers'
    ("guidance", {"grammar": "start: missing"}),
    ("guidance", {"regex": "("}),
    ("no such back end", {"regex": "a"}),
]
"""None of these passes the ingress' checks. What if one did?"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def subject() -> AsyncIterator[Subject]:
    started = await start_vllm(*MTP_ARGV)
    yield started
    await started.engine.shutdown()


def text(subject: Subject, attempt: Any) -> str:
    tokenizer = get_tokenizer(str(MODEL), trust_remote_code=True)
    said: str = tokenizer.decode(subject.sink.tokens(attempt.attempt_id), skip_special_tokens=True)
    return said


async def test_each_request_has_the_back_end_that_it_needs(subject: Subject) -> None:
    for backend in ("guidance", "xgrammar", "guidance", "xgrammar"):
        asked = subject.attempt(max_tokens=20, structured_outputs={"regex": "yes, [0-9]{3}"}, backend=backend)
        await subject.run(asked)
        # What comes after its end is not looked at: guidance ends with the tokenizer's end token, not the model's.
        assert re.match("yes, [0-9]{3}", text(subject, asked)), backend


async def test_one_that_fails_ends_its_own_request(subject: Subject) -> None:
    alone = await subject.run(subject.attempt(max_tokens=BESIDE_TOKENS))
    beside = subject.attempt(max_tokens=BESIDE_TOKENS)
    stream = asyncio.create_task(subject.run(beside))
    await subject.sink.wait_for_tokens(beside.attempt_id, 1)
    for backend, asked in CANNOT_COMPILE:
        bad = subject.attempt(max_tokens=20, structured_outputs=asked, backend=backend)
        assert await subject.run(bad) == [], asked
        assert subject.last(bad).finish_reason == ERROR, asked
    assert await stream == alone
    await subject.engine.check()


async def test_one_that_fails_alone_in_the_engine_is_told_at_once(subject: Subject) -> None:
    for backend, asked in CANNOT_COMPILE:
        bad = subject.attempt(max_tokens=20, structured_outputs=asked, backend=backend)
        assert await asyncio.wait_for(subject.run(bad), 60) == []
        assert subject.last(bad).finish_reason == ERROR
