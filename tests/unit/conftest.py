"""What all unit tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log_lines_reach_caplog() -> Iterator[None]:
    """A test that runs a command, or starts an ingress or a replica, sets its process' logging up: fewer lines, and
    none for pytest."""
    logger = logging.getLogger("serve_app")
    before = logger.level, logger.propagate
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
