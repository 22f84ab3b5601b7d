"""What an engine died of is read off how its processes ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from serve_app.engine.contract import FAILED_BY_ITSELF
from serve_app.engine.vllm_process import how_cores_ended


@dataclass
class Core:
    """A process as `multiprocessing` shows it. `exitcode` is known once it has been joined."""

    code: int | None
    sentinel: int
    exitcode: int | None = None

    def join(self, timeout: float) -> None:
        assert timeout > 0
        self.exitcode = self.code


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("code", "by_itself"),
    [(1, True), (None, True), (-signal.SIGSEGV, True), (-signal.SIGKILL, False), (-signal.SIGTERM, False), (0, False)],
)
def test_a_core_that_was_killed_has_not_failed_by_itself(
    pipe: tuple[int, int], code: int | None, by_itself: bool
) -> None:
    reading, writing = pipe
    if code is not None:
        os.write(writing, b"!")  # its sentinel is ready
    core: Any = Core(code, reading)
    assert (FAILED_BY_ITSELF in how_cores_ended([core])) is by_itself


def test_an_engine_without_cores_has_just_ended() -> None:
    assert FAILED_BY_ITSELF not in how_cores_ended([])
