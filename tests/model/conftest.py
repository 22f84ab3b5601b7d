"""The shipped checkpoint, and a real vLLM server that runs it, each loaded once."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from models.training import checkpoint
from models.training.encoding import Encoder, Renderer
from models.training.eval_client import EvalClient
from models.training.model.architecture import StepModel
from models.training.model.dimensions import ModelDimensions

READY_WITHIN_S = 240.0
"""Far above the 20 s it takes alone: test machines run other things too."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """As in training: the same bits in every run, and no waiting for threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    return Renderer(checkpoint.CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def shipped() -> tuple[StepModel, Tokenizer]:
    """The shipped model in evaluation mode, and its tokenizer. A test that changes weights changes a copy."""
    return checkpoint.load(checkpoint.HOME, ModelDimensions())


@pytest.fixture(scope="session")
def encoder(shipped: tuple[StepModel, Tokenizer], renderer: Renderer) -> Encoder:
    """With the shipped tokenizer."""
    return Encoder(shipped[1], renderer)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvalClient]:
    """With three drafted tokens, the model's parsers, and whatever plugins the environment has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(checkpoint.HOME),
        "--served-model-name",
        "step-tiny",
        "--trust-remote-code",
        "--enforce-eager",
        "--max-num-seqs",
        "32",
        "--max-model-len",
        "16384",
        "--reasoning-parser",
        "step3p5",
        "--tool-call-parser",
        "step3p5",
        "--enable-auto-tool-choice",
        "--enable-prompt-tokens-details",
        "--speculative-config",
        '{"method": "mtp", "num_speculative_tokens": 3}',
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    log = tmp_path_factory.mktemp("engine") / "log.txt"
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
            yield EvalClient(f"http://127.0.0.1:{port}", None, "step-tiny", None)
        finally:
            process.terminate()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)  # ends early where there is nothing to wait for any more
    pytest.fail(f"vLLM did not get ready:\n{log.read_text(errors='replace')[-4000:]}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the trained weights where `models/step-tiny` is an untrained checkpoint, which has no card."""
    if (checkpoint.HOME / "README.md").exists():
        return
    untrained = pytest.mark.skip(reason="models/step-tiny is the untrained stand-in: it has no card")
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name in {"test_engine.py", "test_checkpoint.py"}:
            item.add_marker(untrained)
