"""A streamed answer, put together, equals the whole one: any tokens, cut anyhow, on all four APIs.

`ANSWERS=2500 python -m pytest tests/http/test_stream_equals_whole.py` tries 10,000 cuts on each API: 2,500 answers,
four cuts of each, and a whole one. `SEED` draws others.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from tests.http.harness import MODEL, service
from tests.http.saying import Apis, Saying, said
from tests.http.sayings import Draw

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWERS = int(os.environ.get("ANSWERS", "60"))
CUTS = 4
SEED = int(os.environ.get("SEED", "1"))
TOKENIZER = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)


@pytest.fixture(scope="module")
def saying() -> Saying:
    return Saying(TOKENIZER.eos_token_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def apis(saying: Saying) -> AsyncIterator[Apis]:
    async with service({"a": saying.engine}) as running:
        yield Apis(running.middleware.app)


@pytest.mark.timeout(300 + ANSWERS)
@pytest.mark.parametrize("api", ["chat", "messages", "responses", "completions"])
async def test_a_streamed_answer_equals_the_whole_one(apis: Apis, saying: Saying, api: str) -> None:
    for number in range(ANSWERS):
        draw = Draw(random.Random(f"{SEED} {number}"), TOKENIZER)
        case = draw.case(api)
        whole = await said(apis, saying, api, case.body, draw.cuts(case), stream=False)
        for _ in range(CUTS):
            cuts = draw.cuts(case)
            streamed = await said(apis, saying, api, case.body, cuts, stream=True)
            assert streamed == whole, f"SEED={SEED} number={number} {case.texts!r} {case.body}"
