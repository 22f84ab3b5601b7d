"""What vLLM reports of its prefix cache, in the pages by which an ingress knows the prompts that it has sent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import stat
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image
from vllm.distributed.kv_events import BlockStored, EventPublisherFactory, KVEventBatch
from vllm.multimodal.inputs import PlaceholderRange

from serve_app.engine.cache_log import CacheMirror
from serve_app.engine.kv_events import KvEvents
from serve_app.engine.vllm_io import image_name
from serve_app.engine.vllm_process import parse_engine_args
from serve_app.protocol.messages import CacheChanges
from tests.contracts.harness import MTP_ARGV, START_TIMEOUT_S, VLLM_ARGV, Subject, pages_of, start_vllm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.usefixtures("engine_environment"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(START_TIMEOUT_S),
]

SMALL_CACHE_ARGV = ["--num-gpu-blocks-override", "40"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def subject() -> AsyncIterator[Subject]:
    started = await start_vllm(*MTP_ARGV, *SMALL_CACHE_ARGV)
    yield started
    await started.engine.shutdown()


def tokens(count: int, seed: int) -> list[int]:
    return [30 + (seed * 131 + number * 7) % 900 for number in range(count)]


def image_features(color: str, offset: int) -> tuple[list[int], Any]:
    """The token ids of an image, and vLLM's features of it, as if it began at `offset`."""
    from vllm.renderers import renderer_from_config
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    args = parse_engine_args(VLLM_ARGV)
    args._api_process_count = 2
    config = args.create_engine_config()
    renderer = renderer_from_config(config)
    prompt = {"prompt": "<im_patch>", "multi_modal_data": {"image": Image.new("RGB", (60, 40), color)}}
    processor = InputProcessor(config, renderer)
    request = processor.process_inputs("image", prompt, SamplingParams(), supported_tasks=("generate",))
    renderer.shutdown()
    (feature,) = request.mm_features
    place = dataclasses.replace(feature.mm_position, offset=feature.mm_position.offset + offset)
    assert isinstance(place, PlaceholderRange)
    return list(request.prompt_token_ids), dataclasses.replace(feature, mm_position=place)


async def evict_by_use(subject: Subject, pages: Sequence[int]) -> None:
    """Send other prompts until the cache has given these pages up."""
    for seed in range(100, 140):
        await subject.run(subject.attempt(max_tokens=1, prompt=tokens(500, seed)))
    await subject.wait_for_pages(gone=pages)


async def test_pages_are_those_of_the_prompt_until_others_need_their_room(subject: Subject) -> None:
    prompt = tokens(300, 1)
    pages = pages_of(prompt)
    await subject.run(subject.attempt(max_tokens=2, prompt=prompt))
    await subject.wait_for_pages(held=pages)
    await evict_by_use(subject, pages)
    again = subject.attempt(max_tokens=2, prompt=prompt)
    await subject.run(again)
    assert subject.cached_tokens(again) == 0
    await subject.wait_for_pages(held=pages)
    assert len(subject.pages.pages) <= 40


async def test_an_image_that_reaches_into_two_pages_is_a_key_of_both(subject: Subject) -> None:
    ids, feature = await asyncio.to_thread(image_features, "red", 240)
    assert feature.mm_position.offset < 256 < feature.mm_position.offset + feature.mm_position.length
    prompt = (tokens(240, 2) + ids + tokens(512, 2))[: 512 - 2]
    name = [image_name(feature)]
    pages = pages_of(prompt, {0: name, 1: name})
    await subject.run(subject.attempt(max_tokens=1, prompt=prompt, mm_features=[feature]))
    await subject.wait_for_pages(held=pages)
    assert not set(pages_of(prompt)) & subject.pages.pages


async def test_a_cache_salt_is_a_key_of_the_first_page(subject: Subject) -> None:
    prompt = tokens(300, 3)
    await subject.run(subject.attempt(max_tokens=1, prompt=prompt, cache_salt="tenant"))
    await subject.wait_for_pages(held=pages_of(prompt, {0: ["tenant"]}))
    assert not set(pages_of(prompt)) & subject.pages.pages


async def test_the_sockets_are_removed_with_the_engine(subject: Subject) -> None:
    """The last test of its engine."""
    folder = subject.engine._kv_events._folder.name  # type: ignore[attr-defined]  # of the one over vLLM
    assert stat.S_IMODE((await asyncio.to_thread(os.stat, folder)).st_mode) == 0o700
    await subject.engine.shutdown()
    assert not await asyncio.to_thread(os.path.exists, folder)


async def test_an_operators_own_events_stay_as_they_are() -> None:
    own = '{"enable_kv_cache_events": true, "publisher": "null"}'
    subject = await start_vllm("--kv-events-config", own)
    assert not subject.info.reports_cache
    await subject.run(subject.attempt(max_tokens=2, prompt=tokens(300, 1)))
    assert subject.engine.cache_changes() is None
    await subject.engine.shutdown()


@pytest.mark.parametrize(("kept", "lost"), [(100, 0), (2, 4)])
async def test_batches_from_before_anybody_listened_are_asked_for(kept: int, lost: int) -> None:
    """vLLM's publisher alone, without an engine. Of six batches it keeps all, or the last ones."""
    config = SimpleNamespace(
        cache_config=SimpleNamespace(
            enable_prefix_caching=True, block_size=256, effective_attention_block_size=256, num_gpu_blocks=1000
        ),
        parallel_config=SimpleNamespace(data_parallel_size=1),
        kv_events_config=None,
    )
    events = KvEvents()
    events.configure(config)
    assert config.kv_events_config is not None
    config.kv_events_config.buffer_steps = kept
    publisher = EventPublisherFactory.create(config.kv_events_config)
    for seed in range(6):
        publisher.publish(stored(seed))
    await asyncio.to_thread(publisher._event_queue.join)
    events.follow(config)
    mirror, was_reset, seed = CacheMirror(), False, 6
    async with asyncio.timeout(60):
        while len(mirror.pages) < 6 - lost:
            publisher.publish(stored(seed))
            seed += 1
            changes = await first_changes(events, within_s=0.5)
            was_reset = was_reset or (changes is not None and changes.reset)
            if changes is not None:
                mirror.apply(changes)
    assert was_reset == bool(lost)
    every = {pages_of(tokens(256, seed))[0]: seed for seed in range(seed)}
    assert min(every[page] for page in mirror.pages) >= lost
    await events.stop()
    events.close()
    await asyncio.to_thread(publisher.shutdown)


def stored(seed: int) -> KVEventBatch:
    event = BlockStored(
        block_hashes=[seed],
        parent_block_hash=None,
        token_ids=tokens(256, seed),
        block_size=256,
        lora_id=None,
        medium="GPU",
        lora_name=None,
        group_idx=0,
        kv_cache_spec_kind="full_attention",
    )
    return KVEventBatch(ts=0.0, events=[event])


async def first_changes(events: KvEvents, within_s: float) -> CacheChanges | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                if (changes := events.changes()) is not None:
                    return changes
                await asyncio.sleep(0)
    return None
