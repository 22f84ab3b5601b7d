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
from dataclasses import dataclass, replace

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

    def says_the_same(self, other: Report | None) -> bool:
        """Whether it adds nothing to an earlier report: nothing was asked for, and nothing is used or held that was
        not."""
        same = other is not None and (self.limit, self.ceiling, self.used) == (other.limit, other.ceiling, other.used)
        return same and other is not None and not self.demand and not other.demand


@dataclass(frozen=True)
class Lease:
    """The answer to a report. What the other ingresses use, and when the first of that ends."""

    ceiling: int
    used_elsewhere: int = 0
    frees_elsewhere_in_s: float | None = None


class Ingresses:
    """The ingresses that there are, and when each was heard from."""

    def __init__(self) -> None:
        self._heard_s: dict[str, float] = {}
        self._last_s = -math.inf

    def hear(self, ingress: str, now_s: float) -> bool:
        """One has reported. False where it is new, or was taken for gone: what it holds is not known."""
        silent_s, self._last_s = now_s - self._last_s, now_s
        if silent_s > 2 * LEASE_S:
            # Nobody was heard: it was this process that stood still, or was cut off. Nobody has gone for that.
            self._heard_s = {name: at_s + silent_s for name, at_s in self._heard_s.items()}
        is_known = self.is_here(ingress, now_s)
        self._heard_s[ingress] = now_s
        return is_known

    def silent_s(self, ingress: str, now_s: float) -> float:
        """How long it has reported nothing."""
        return now_s - self._heard_s.get(ingress, -math.inf)

    def is_here(self, ingress: str, now_s: float) -> bool:
        """Whether it has reported lately."""
        return self.silent_s(ingress, now_s) <= GONE_AFTER_S

    def forget(self, ingress: str) -> None:
        """Take back that it was heard."""
        self._heard_s.pop(ingress, None)

    def forget_gone(self, after_s: float, now_s: float) -> list[str]:
        """Forget those that have been silent for so long, and name them."""
        gone = [name for name, at_s in self._heard_s.items() if now_s - at_s > after_s]
        for name in gone:
            del self._heard_s[name]
        return gone


@dataclass
class _Share:
    report: Report
    held: int
    """What it may have in use until its next report."""
    reported_s: float

    def lacks(self, target: int) -> bool:
        """Whether it needs more, of what it should have: for its demand, or for its first requests if it has none. That
        ceilings are exactly as they should be is not worth a lease for everybody."""
        wanted = self.report.used + AHEAD * self.report.demand if self.report.demand else (target + 1) // 2
        return self.held < min(target, wanted)


class SharedLimit:
    """One limit of one key, and who holds what of it.

    `memory_s` is how long the use of an ingress lasts that has gone. Before `settled_s` other ingresses than those that
    have reported may hold something (this process may have been restarted): no ceiling is raised beyond an equal share
    among `expected`. `ingresses` are told of each report before it comes here.
    """

    def __init__(self, memory_s: float, settled_s: float, expected: int, ingresses: Ingresses) -> None:
        self._ingresses = ingresses
        self._memory_s = memory_s
        self._settled_s = settled_s
        self._expected = max(1, expected)
        self._shares: dict[str, _Share] = {}
        self.is_uneven = False
        """Whether an ingress needs more than was free, or much is free that nobody holds."""
        self.is_scarce = False
        """Whether so much of it is used that others should know."""

    def exchange(self, ingress: str, report: Report, now_s: float) -> Lease:
        """Take a report and lease a ceiling."""
        self._forget_gone(now_s)
        share = _Share(report, max(report.ceiling, report.used), now_s)
        self._shares[ingress] = share
        here = {name: one for name, one in self._shares.items() if self._ingresses.is_here(name, now_s)}
        limit = min(one.report.limit for one in here.values())
        gone = sum(one.held for name, one in self._shares.items() if name not in here)
        targets = divide(max(0, limit - gone), {name: one.report for name, one in here.items()})
        ceiling = min(targets[ingress], share.held + max(0, limit - self.held))
        if now_s < self._settled_s:
            ceiling = min(ceiling, max(report.ceiling, limit // self._expected))
        share.held = max(share.held, ceiling)
        much_is_free = 16 * (limit - self.held) > limit
        self.is_uneven = much_is_free or any(one.lacks(targets[name]) for name, one in here.items())
        self.is_scarce = 2 * sum(one.report.used for one in self._shares.values()) >= limit
        return self._lease(ingress, ceiling, now_s)

    def renew(self, ingress: str, now_s: float) -> Lease | None:
        """Another lease for an ingress that has nothing to report of this limit; None where it does not have it."""
        share = self._shares.get(ingress)
        if share is None:
            return None
        frees_in_s = share.report.frees_in_s
        if frees_in_s is not None:  # it was so long when it was reported
            frees_in_s = max(0.0, frees_in_s - (now_s - share.reported_s))
        report = replace(share.report, ceiling=share.held, demand=0, frees_in_s=frees_in_s)
        return self.exchange(ingress, report, now_s)

    def drop(self, ingress: str) -> bool:
        """An ingress has this limit no more. True where nobody has it."""
        self._shares.pop(ingress, None)
        return not self._shares

    def _lease(self, ingress: str, ceiling: int, now_s: float) -> Lease:
        others = [one for name, one in self._shares.items() if name != ingress]
        ages_s = [(one.report.frees_in_s, now_s - one.reported_s) for one in others]
        frees = [max(0.0, frees_s - age_s) for frees_s, age_s in ages_s if frees_s is not None]
        return Lease(ceiling, sum(one.report.used for one in others), min(frees, default=None))

    @property
    def held(self) -> int:
        """What all ingresses together may have in use."""
        return sum(one.held for one in self._shares.values())

    def _forget_gone(self, now_s: float) -> None:
        for name, one in list(self._shares.items()):
            silent_s = self._ingresses.silent_s(name, now_s)
            if silent_s > GONE_AFTER_S:
                one.held = one.report.used
                if silent_s > max(self._memory_s, GONE_AFTER_S):
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
