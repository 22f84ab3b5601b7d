"""What the modules share that keep one engine for all of their tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.harness import ENVIRONMENT


@pytest.fixture(scope="module")
def engine_environment() -> Iterator[None]:
    """What a real engine needs in its environment, for as long as the module runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield
