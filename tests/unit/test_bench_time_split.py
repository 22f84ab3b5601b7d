"""What the comparison of two versions says of its rounds, and that it hears its worker."""

from __future__ import annotations

import sys
from subprocess import PIPE, Popen

import pytest

from bench.time_split import Side, as_text

WORKER = "import sys\nfor line in sys.stdin: print(0.4, 4000, flush=True)"


def test_rounds_are_counted_but_for_those_that_warm_up() -> None:
    with Popen([sys.executable, "-c", WORKER], stdin=PIPE, stdout=PIPE, text=True) as process:
        side = Side("ours", process)
        side.run(counts=False)
        side.run(counts=True)
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    assert side.us == [pytest.approx(100.0)]
    other = Side("other", process, [100.0, 110.0, 90.0, 100.0])
    ours = Side("ours", process, [102.0, 112.2, 91.8, 102.0])
    assert as_text(other, ours) == (
        "CPU a chunk: 100.0 us (other), 102.0 us (ours)\n"
        "ratio of 4 pairs: median +2.0% (+- 0.0%), quartiles +2.0% to +2.0%"
    )
