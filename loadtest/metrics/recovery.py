"""How long a disturbance was felt: from a load step or a lost replica until the objectives hold again.

They hold again at the first request from which on, for the next five seconds of starts, enough requests meet every
time limit. "Enough" is the objective's own percentile. Pure: records and moments in, seconds out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadtest.api.record import Record, RunRecords
from loadtest.metrics.slo import TIMES, Bound

WINDOW_S = 5.0


def recoveries(
    run: RunRecords, bounds: Sequence[Bound], moments_s: Sequence[float]
) -> tuple[tuple[float, float | None], ...]:
    """For each moment, seconds until recovery: 0 where nothing was felt, None where it never came."""
    timed = [bound for bound in bounds if bound.metric in TIMES]
    records = sorted((r for r in run.records if r.ok or r.failed), key=lambda record: record.start_ns)
    if not timed or not records:
        return ()
    starts = np.array([(record.start_ns - run.begin_ns) / 1e9 for record in records])
    met = np.array([_meets(record, timed) for record in records])
    share = min(_needed(bound) for bound in timed)
    return tuple((moment, _recovery_s(starts, met, share, moment)) for moment in moments_s)


def _meets(record: Record, bounds: Sequence[Bound]) -> bool:
    return record.ok and all(bound.holds(TIMES[bound.metric](record)) for bound in bounds)


def _needed(bound: Bound) -> float:
    """Share of requests that must meet the limit: 0.99 for a P99, half for a mean."""
    return float(bound.statistic) / 100 if bound.statistic.replace(".", "", 1).isdigit() else 0.5


def _recovery_s(
    starts: np.ndarray[tuple[int], np.dtype[np.float64]],
    met: np.ndarray[tuple[int], np.dtype[np.bool_]],
    share: float,
    moment: float,
) -> float | None:
    # Requests in flight at the moment are hit by it too.
    first = int(
        np.searchsorted(
            starts, moment - WINDOW_S if not met[(starts >= moment - WINDOW_S) & (starts < moment)].all() else moment
        )
    )
    for place in range(first, len(starts)):
        window = met[place : int(np.searchsorted(starts, starts[place] + WINDOW_S))]
        if window.mean() >= share:
            return 0.0 if place == first else max(0.0, float(starts[place]) - moment)
    return None
