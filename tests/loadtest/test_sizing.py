"""The client takes as many processes as the load needs, and says why."""

from __future__ import annotations

import pytest

from loadtest.load.schedule import LoadSchedule
from loadtest.load.worker_processes import choose_worker_count


@pytest.mark.parametrize(
    ("asked", "load", "cores", "count", "said"),
    [
        (None, LoadSchedule(32), 8, 1, "1 process: 32 streams"),
        (None, LoadSchedule(1024), 8, 3, "3 processes: 1024 streams"),
        (None, LoadSchedule(4096), 2, 2, "too few for 4096 streams"),
        (3, LoadSchedule(32), 2, 3, "--workers"),
        (None, LoadSchedule(None, times_s=tuple(i / 600 for i in range(1200))), 8, 3, "600 starts in a second"),
        (None, LoadSchedule(2000, times_s=(0.0, 1.0)), 8, 4, "2000 streams"),
        (None, LoadSchedule(None, times_s=()), 8, 1, "unknown"),
    ],
)
def test_the_crew_follows_the_load(asked: int | None, load: LoadSchedule, cores: int, count: int, said: str) -> None:
    worker_count = choose_worker_count(asked, load, cores)
    assert worker_count.count == count
    assert said in worker_count.reason
