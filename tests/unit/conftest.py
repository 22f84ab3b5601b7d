"""What all unit tests share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _log_lines_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that starts an ingress or a replica sets its process' logging up, which keeps lines from pytest."""
    monkeypatch.setattr(logging.getLogger("serve_app"), "propagate", True)
