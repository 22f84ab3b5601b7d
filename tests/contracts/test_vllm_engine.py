"""What only the real engine can show: the whole architecture on a CPU, images, and that nothing outlives its owner."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from PIL import Image
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serve_app.engine.vllm import VllmEngine
from serve_app.engine.vllm_io import engine_request, image_name
from serve_app.engine.vllm_process import parse_engine_args, wait_gone
from serve_app.protocol.errors import AttemptRefused, EngineDead
from serve_app.protocol.messages import AttemptRequest
from tests.contracts.harness import (
    ENVIRONMENT,
    MTP_ARGV,
    START_TIMEOUT_S,
    VLLM_ARGV,
    Subject,
    ignore_step,
    start_vllm,
    vllm_payload,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(START_TIMEOUT_S)]

TWO_RANKS_ARGV = ["--tensor-parallel-size", "2", "--enable-expert-parallel", *MTP_ARGV]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


async def test_two_ranks_with_expert_parallelism_speculation_and_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine, in turn: an image, its tokens again from the prefix cache, and a kill that takes both ranks along."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    prompt, features = image_request()
    subject = await start_vllm(*TWO_RANKS_ARGV)
    try:
        attempts = [
            images_apart(subject, prompt, features),
            subject.attempt(max_tokens=12, prompt=prompt, mm_features=features),
        ]
        first, second = [await subject.run(attempt) for attempt in attempts]
        assert len(first) == 12
        assert first == second
        # The core has the image in its cache now, and gets its name only.
        await subject.engine._must_live().llm.reset_prefix_cache()
        assert await subject.run(images_apart(subject, prompt, features)) == first
        resumed = subject.attempt(max_tokens=12, prompt=prompt, emitted=first[:5], mm_features=features)
        assert await subject.run(resumed) == first[5:]
        scored = subject.attempt(max_tokens=2, logprobs=2)
        await subject.run(scored)
        assert all(delta.extra for delta in subject.sink.deltas[scored.attempt_id])

        processes = psutil.Process().children(recursive=True)
        ranks = [process for process in processes if "Worker" in "".join(process.cmdline())]
        assert len(ranks) >= 2
        await subject.kill()
        assert await asyncio.to_thread(wait_gone, ranks, 5.0) == []
    finally:
        await subject.engine.shutdown()


def images_apart(subject: Subject, prompt: list[int], features: Any) -> AttemptRequest:
    """The attempt as a replica has it: the images beside the rest of the request."""
    encoder = MsgpackEncoder()
    without = [dataclasses.replace(feature, data=None) for feature in features]
    attempt = subject.attempt(max_tokens=12, prompt=prompt, mm_features=without)
    images = {image_name(one): [bytearray(b) for b in encoder.encode(one.data)] for one in features}
    assert sum(map(len, attempt.spec.payload)) < sum(map(len, next(iter(images.values()))))
    return msgspec.structs.replace(attempt, images=images)


async def test_an_image_that_travels_apart_is_the_same_image() -> None:
    prompt, features = image_request()
    subject = Subject(object(), object(), object(), object(), vllm_payload)  # type: ignore[arg-type]  # payloads only
    attempt = images_apart(subject, prompt, features)
    decoders = MsgpackDecoder(EngineCoreRequest), MsgpackDecoder(MultiModalKwargsItem)
    found = engine_request(attempt, 8192, *decoders).mm_features
    for one, original in zip(found, features, strict=True):
        assert one.mm_position == original.mm_position
        assert one.data.keys() == original.data.keys()
        for name, element in original.data.items():
            assert torch.equal(one.data[name].data, element.data)
    with pytest.raises(AttemptRefused, match="not a request"):
        engine_request(msgspec.structs.replace(attempt, images={}), 8192, *decoders)


def image_request() -> tuple[list[int], Any]:
    """A prompt with an image as an ingress sends it: token ids, and vLLM's features with the processed tensors.

    The cache is the one for several front ends: it must not leave the tensors out when it has seen the image.
    """
    from vllm.renderers import renderer_from_config
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    args = parse_engine_args(VLLM_ARGV)
    args._api_process_count = 2
    config = args.create_engine_config()
    renderer = renderer_from_config(config)
    processor = InputProcessor(config, renderer)
    prompt = {"prompt": "<im_patch>What is it?", "multi_modal_data": {"image": Image.new("RGB", (60, 40), "red")}}
    for _ in range(2):
        request = processor.process_inputs("image", prompt, SamplingParams(), supported_tasks=("generate",))
    renderer.shutdown()
    assert all(feature.data is not None for feature in request.mm_features)
    return request.prompt_token_ids, request.mm_features


async def test_an_engine_that_cannot_start_says_why_and_leaves_nothing() -> None:
    argv = [*VLLM_ARGV, "--max-model-len", "100000000"]
    with pytest.raises(EngineDead, match="max_model_len"):
        await VllmEngine(argv, ignore_step).start(print)
    with pytest.raises(EngineDead, match="no-such-flag"):
        await VllmEngine([*VLLM_ARGV, "--no-such-flag"], ignore_step).start(print)
    assert engine_processes_of(psutil.Process()) == []


async def test_an_owner_that_is_killed_leaves_no_engine_process() -> None:
    """Killed while the weights are loading: every process is there, and none of vLLM's clean-up runs."""
    command = [sys.executable, str(Path(__file__).with_name("owner.py")), *VLLM_ARGV]
    owner = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    try:
        async for line in owner.stdout:
            if line.startswith(b"loading weights"):
                break
        processes = engine_processes_of(psutil.Process(owner.pid))
        assert len(processes) >= 2
    finally:
        owner.send_signal(signal.SIGKILL)
        await owner.wait()
    assert await asyncio.to_thread(wait_gone, processes, 5.0) == []


@pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning")
async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    engine = VllmEngine(VLLM_ARGV, ignore_step)
    workers_start = asyncio.Event()
    loop = asyncio.get_running_loop()

    def progress(phase: str) -> None:
        if phase.startswith("starting workers"):
            loop.call_soon_threadsafe(workers_start.set)

    start = asyncio.create_task(engine.start(progress))
    await workers_start.wait()
    await engine.shutdown()
    with pytest.raises(EngineDead):
        await start
    assert engine_processes_of(psutil.Process()) == []
    await engine.shutdown()
    gc.collect()  # of a failed start vLLM forgets to close its ZMQ context: let that be said here


def engine_processes_of(owner: psutil.Process) -> list[psutil.Process]:
    children = owner.children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
