"""The benchmark of what traces cost runs, and its spans reach a collector."""

from __future__ import annotations

import pytest

from bench import tracing


def test_every_mode_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert tracing.main(["--rounds", "2", "--requests", "10"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "off",
        "0 %",
        "1 %",
        "100 %",
        "1 %, clients send the flag 00",
    ]
    assert all(" us " in row for row in rows)
