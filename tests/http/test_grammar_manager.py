"""vLLM's own `StructuredOutputManager`, as an engine has it, with our guards. It needs no engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.request import StructuredOutputRequest

from serve_app.vllm_patches import grammars
from serve_app.vllm_patches.grammars import GuardedGrammar
from tests.http.harness import service

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated:DeprecationWarning"),  # vLLM's use of xgrammar
]

TAG = {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}]}

CANNOT_COMPILE: list[tuple[str, dict[str, Any]]] = [
    ("xgrammar", {"regex": "("}),
    ("xgrammar", {"grammar": "root ::= missing"}),
    ("xgrammar", {"structural_tag": "{"}),
    ("guidance", {"structural_tag": json.dumps(TAG)}),  # KeyError 'triggers'
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager() -> AsyncIterator[Any]:
    grammars.keep_to_their_requests()
    async with service({}) as running:
        yield StructuredOutputManager(running.client.vllm_config)


async def compiled(manager: Any, backend: str, asked: dict[str, Any]) -> Any:
    """The grammar, or the exception that is the request's."""
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**asked))
    params.structured_outputs._backend = backend
    params.update_from_generation_config({}, 1005)
    wanted = StructuredOutputRequest.from_sampling_params(params)
    manager.grammar_init(SimpleNamespace(request_id="r", sampling_params=params, structured_output_request=wanted))
    await asyncio.wait([asyncio.wrap_future(wanted._grammar)])
    return wanted.grammar


async def test_each_request_has_the_library_that_takes_its_grammar(manager: Any) -> None:
    for backend in ("guidance", "xgrammar", "guidance", "xgrammar"):
        grammar = await compiled(manager, backend, {"regex": "yes|no"})
        assert isinstance(grammar, GuardedGrammar)
        mask = manager.backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(mask, 0)
        assert not grammar.failed
        assert (mask != -1).any()
        rejected = grammar.validate_tokens([1000])
        assert rejected == []
        assert type(grammar._grammar).__name__.lower().startswith(backend)


async def test_what_does_not_compile_is_its_requests_exception(manager: Any) -> None:
    for backend, asked in CANNOT_COMPILE:
        assert isinstance(await compiled(manager, backend, asked), Exception), asked
    assert isinstance(await compiled(manager, "xgrammar", {"regex": "a"}), GuardedGrammar)


async def test_a_back_end_that_there_is_not_is_refused_each_time(manager: Any) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no such"):
            await compiled(manager, "no such", {"regex": "a"})
