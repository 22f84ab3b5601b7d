"""This tier runs over the GPU build of vLLM (`make test-gpu-frontend`), which is laid over the environment."""

from __future__ import annotations

from importlib import metadata

import pytest

from tests.gpu_frontend.install import wanted


@pytest.fixture(autouse=True)
def gpu_build() -> None:
    """Skip, with the reason, where the installed vLLM is another one."""
    try:
        found = f"vllm=={metadata.version('vllm')}"
    except metadata.PackageNotFoundError:
        found = "another build of vLLM"
    if found != wanted():
        pytest.skip(f"needs {wanted()}, here is {found}: `make test-gpu-frontend` (a download of 336 MB)")
