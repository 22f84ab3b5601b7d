"""How ingresses share one limit of a key: each may have a part of it in use, its ceiling. Pure.

Each ingress counts what its own requests use (a window of a minute, or requests at a time) and admits none beyond its
ceiling. Once per lease it reports its use, its ceiling and its demand, and gets a new ceiling. The ceilings never add
up to more than the limit, so nor does what is used:

* a lower ceiling counts as free only when the ingress has reported that it is in place, and then only beyond what it
  still has in use: that stays its own until it leaves the window;
* a ceiling is raised only from what is free.

So an ingress that hears nothing, because the process that leases is away, may go on with its last ceiling for as long
as it likes. (One that lives and is cut off alone is taken for gone, and its ceiling goes to the others.)

Ceilings follow demand: an ingress that asks for more gets what is free at once, and what others hold without using it
when they have given it back, which an ingress says as soon as it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEASE_S = 1.0
"""How often an ingress reports. A new demand is met within two."""

GONE_AFTER_S = 5.0
"""An ingress that has reported nothing for so long has no demand any more; its ceiling goes back."""

AHEAD = 3
"""An ingress that need not share gets what it uses, and its demand for so many leases more."""


@dataclass(frozen=True)
class Report:
    """One limit of a key at one ingress: the limit as its keys file has it, its ceiling, and what it uses. `demand`:
    the units that its requests asked for since the last report, refused ones included. `frees_in_s`: when its oldest
    use ends, if that is known."""

    limit: int
    ceiling: int
    used: int
    demand: int
    frees_in_s: float | None = None


@dataclass(frozen=True)
class Lease:
    """The answer to a report. What the other ingresses use, and when the first of that ends."""

    ceiling: int
    used_elsewhere: int = 0
    frees_elsewhere_in_s: float | None = None


@dataclass
class _Share:
    report: Report
    held: int
    """What it may have in use until its next report."""
    seen_s: float


class SharedLimit:
    """One limit of one key, and who holds what of it.

    `memory_s` is how long the use of an ingress lasts that has gone. Before `settled_s` other ingresses than those that
    have reported may hold something (this process may have been restarted): no ceiling is raised beyond an equal share
    among `expected`.
    """

    def __init__(self, memory_s: float, settled_s: float, expected: int) -> None:
        self._memory_s = memory_s
        self._settled_s = settled_s
        self._expected = max(1, expected)
        self._shares: dict[str, _Share] = {}
        self._heard_s = -math.inf

    def exchange(self, ingress: str, report: Report, now_s: float) -> Lease:
        """Take a report and lease a ceiling."""
        self._skip_own_silence(now_s)
        self._forget_gone(now_s)
        share = _Share(report, max(report.ceiling, report.used), now_s)
        self._shares[ingress] = share
        here = {name: one for name, one in self._shares.items() if now_s - one.seen_s <= GONE_AFTER_S}
        limit = min(one.report.limit for one in here.values())
        gone = sum(one.held for name, one in self._shares.items() if name not in here)
        targets = divide(max(0, limit - gone), {name: one.report for name, one in here.items()})
        ceiling = min(targets[ingress], share.held + max(0, limit - self.held))
        if now_s < self._settled_s:
            ceiling = min(ceiling, max(report.ceiling, limit // self._expected))
        share.held = max(share.held, ceiling)
        others = [one.report for name, one in self._shares.items() if name != ingress]
        frees = [one.frees_in_s for one in others if one.frees_in_s is not None]
        return Lease(ceiling, sum(one.used for one in others), min(frees, default=None))

    @property
    def held(self) -> int:
        """What all ingresses together may have in use."""
        return sum(one.held for one in self._shares.values())

    def _skip_own_silence(self, now_s: float) -> None:
        """Where nobody was heard, it was this process that stood still, or was cut off: nobody has gone for that."""
        silent_s, self._heard_s = now_s - self._heard_s, now_s
        if silent_s > 2 * LEASE_S:
            for one in self._shares.values():
                one.seen_s += silent_s

    def _forget_gone(self, now_s: float) -> None:
        for name, one in list(self._shares.items()):
            if now_s - one.seen_s > GONE_AFTER_S:
                one.held = one.report.used
                if now_s - one.seen_s > max(self._memory_s, GONE_AFTER_S):
                    del self._shares[name]


def divide(limit: int, reports: Mapping[str, Report]) -> dict[str, int]:
    """The ceiling that each ingress should have. Together they are the limit.

    Where there is enough, each gets what it uses and its demand of the next leases, and the rest goes by demand; an
    ingress without any gets a little, for its first requests. Where there is not, all goes in proportion to use and
    demand. Use follows the ceiling, so after a few leases that is in proportion to demand.
    """
    wanted = {name: one.used + AHEAD * one.demand for name, one in reports.items()}
    spare = limit - sum(wanted.values())
    if spare < 0:
        return apportion(limit, wanted)
    extra = apportion(spare, {name: 1 + one.demand for name, one in reports.items()})
    return {name: wanted[name] + extra[name] for name in reports}


def apportion(units: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Whole units by weight, all of them unless every weight is 0; the largest remainders are rounded up."""
    total = sum(weights.values())
    if not total:
        return dict.fromkeys(weights, 0)
    parts = {name: units * weight // total for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(units * weights[name] % total), name))
    for name in by_remainder[: units - sum(parts.values())]:
        parts[name] += 1
    return parts
