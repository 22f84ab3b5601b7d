"""What users will feel with so many engines: a queueing model of a fleet, from measured rates.

Two things make a request wait for its first token: prompts that are computed before its own, and slots that are all
taken. Both are queues with many servers: an engine computes prompts at `prefill_tokens_per_s`, and each of its slots
is free again after `service_s`. The wait of one request in 20 is that of an M/M/c queue, with Sakasegawa's
approximation of how often all servers are busy, `rho ** (sqrt(2 (c + 1)) - 1)`: routing by cost is close enough to one
queue for all. What waits already is work that must be done besides: it grows or shrinks with the engines that there are
until more serve, and these have a start time to work it off. Where the KV cache and not the number
of slots is the limit, there are as many slots as fit. Prompts whose lengths are spread less than exponentially, or
more, make for shorter or longer waits: `(1 + spread) / 2` (Allen and Cunneen's approximation for M/G/c).

The caches must hold what sessions come back to. Where they do not, each turn has its whole context computed again,
which is load that no queue has shown before.

The time between tokens is linear in the sequences that decode together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from serve_app.scaling.facts import Cause, EngineRates, Objective

FULL_RATIO = 0.95
"""A queue that is busier is taken for one that grows: rates are not known better than so."""

KV_FULL_RATIO = 0.9
"""A KV cache is not filled further on purpose: sequences grow, and vLLM preempts when it is full."""

TAIL = 0.05
PROMPT_P95_EACH = math.log(1 / TAIL) - 1
"""The 95th percentile of prompts is `1 + this * sqrt(spread)` means: exact where all are alike and for the exponential
distribution, and within 4 % for a log-normal one in between."""

NORMAL_P95 = 1.645
"""The 95th percentile of a normal distribution: the number of sequences that meet in an engine is about Poisson."""

LEAST_WAIT_SHARE = 0.25
"""Where a prompt alone takes longer than the objective, or nearly so, no number of engines keeps it. Then the wait
before it is held at this share of the objective."""

LEAST_RECOVERY_S = 20.0
"""What waits must be worked off in a start time, from when an engine serves, and need not be faster than in so long."""


@dataclass(frozen=True)
class Load:
    """What comes to the fleet and what it holds, and the engines that it has. Rates are those expected at the horizon.

    `ready` engines serve; `ordered`, these included, will in `ordered_in_s`, and what is decided now in `horizon_s`.
    """

    rates: EngineRates
    requests_per_s: float
    prefill_tokens_per_s: float
    queued_prefill_tokens: float
    queued_requests: int
    running: int
    ready: int
    ordered: int
    ordered_in_s: float
    horizon_s: float
    prompt_spread: float = 1.0
    """Squared coefficient of variation of what is to be computed of a prompt; 1 for the exponential distribution."""
    session_tokens: float = 0.0
    """Of requests that are there, and of sessions that asked lately."""
    rises: bool = False
    """Whether more and more comes, beyond chance."""

    def with_margin(self, factor: float) -> Load:
        """The same with so much more of everything that comes or waits."""
        return replace(
            self,
            requests_per_s=self.requests_per_s * factor,
            prefill_tokens_per_s=self.prefill_tokens_per_s * factor,
            queued_prefill_tokens=self.queued_prefill_tokens * factor,
            queued_requests=math.ceil(self.queued_requests * factor),
            running=math.ceil(self.running * factor),
            session_tokens=self.session_tokens * factor,
        )

    @property
    def prefill_backlog_s(self) -> float:
        """How long the engines that serve would compute at the prompts that wait."""
        speed = (self.rates.prefill_tokens_per_s or 0.0) * max(self.ready, 1)
        return self.queued_prefill_tokens / speed if speed else 0.0

    @property
    def slots(self) -> float:
        """How many sequences an engine can run: as many as it has slots, and as fit into its KV cache."""
        kv = self.rates.kv_per_sequence_ratio
        return max(min(self.rates.slots, KV_FULL_RATIO / kv), 1.0) if kv else self.rates.slots

    @property
    def sequences(self) -> float:
        """How many would run at a time if none had to wait (Little's law)."""
        if self.rates.service_s is None:
            return float(self.running + self.queued_requests)
        return max(self.requests_per_s * self.rates.service_s, float(self.running))


@dataclass(frozen=True)
class Forecast:
    """What one request in 20 exceeds, with a number of engines. Prompts are computed as fast as they come
    (`prefill_keeps_up`), and slots get free as fast as they are taken (`slots_keep_up`), or queues grow without end.
    `caches_hold` what sessions come back to.

    `tpot_p95_s` is None where it is not measured, as the parts of TTFT are 0 then. `least_tpot_s`: with one sequence.
    """

    prompt_p95_s: float
    prefill_wait_p95_s: float
    slot_wait_p95_s: float
    tpot_p95_s: float | None
    least_tpot_s: float
    prefill_keeps_up: bool
    slots_keep_up: bool
    caches_hold: bool = True

    @property
    def ttft_p95_s(self) -> float:
        """The time to the first token: its own prompt, and all that comes before."""
        return self.prompt_p95_s + self.prefill_wait_p95_s + self.slot_wait_p95_s

    def keeps(self, objective: Objective) -> bool:
        """Whether the objective is kept, as far as a number of engines can."""
        keeps_up = self.prefill_keeps_up and self.slots_keep_up and self.caches_hold
        return keeps_up and not self._ttft_fails(objective) and not self._tpot_fails(objective)

    def cause(self, objective: Objective, load: Load) -> Cause:
        """What is short where the objective is not kept."""
        if not self.caches_hold:
            return Cause.SESSIONS
        keeps_up = self.prefill_keeps_up and self.slots_keep_up
        if self._tpot_fails(objective) and keeps_up and not self._ttft_fails(objective):
            return Cause.TPOT
        by_wait = self.prefill_wait_p95_s >= self.slot_wait_p95_s
        if by_wait if self.prefill_keeps_up == self.slots_keep_up else self.slots_keep_up:
            return Cause.PREFILL
        return Cause.KV_CACHE if load.slots < load.rates.slots else Cause.SLOTS

    def _ttft_fails(self, objective: Objective) -> bool:
        if objective.ttft_p95_s is None:
            return False
        wait_s = max(objective.ttft_p95_s - self.prompt_p95_s, LEAST_WAIT_SHARE * objective.ttft_p95_s)
        return self.prefill_wait_p95_s + self.slot_wait_p95_s > wait_s

    def _tpot_fails(self, objective: Objective) -> bool:
        if objective.tpot_p95_s is None or self.tpot_p95_s is None or self.least_tpot_s > objective.tpot_p95_s:
            return False  # slower than the objective even alone: no number of engines helps
        return self.tpot_p95_s > objective.tpot_p95_s


def forecast(engines: int, load: Load) -> Forecast:
    """What users feel a start time from now, when `engines` (at least one) are asked for now."""
    rates = load.rates
    prompt_s = 0.0
    prefill_wait_s, computes = 0.0, True
    if rates.prefill_tokens_per_s:
        if load.requests_per_s > 0:
            prompt_s = load.prefill_tokens_per_s / load.requests_per_s / rates.prefill_tokens_per_s
        prefill_wait_s, computes = _wait(
            engines,
            load,
            load.queued_prefill_tokens,
            load.prefill_tokens_per_s,
            rates.prefill_tokens_per_s,
            prompt_s,
            spread=load.prompt_spread,
        )
    slot_wait_s, runs = _slot_wait(engines, load)
    base_s, each_s = rates.tpot_base_s, rates.tpot_per_sequence_s or 0.0
    tpot_s = None
    if base_s is not None:
        mean = min(load.sequences / engines, load.slots)
        together = max(min(mean + NORMAL_P95 * math.sqrt(mean), load.slots), 1.0)
        tpot_s = base_s + each_s * together
    return Forecast(
        (1 + PROMPT_P95_EACH * math.sqrt(load.prompt_spread)) * prompt_s,
        prefill_wait_s,
        slot_wait_s,
        tpot_s,
        (base_s or 0.0) + each_s,
        computes,
        runs,
        not rates.kv_cache_tokens or load.session_tokens <= engines * rates.kv_cache_tokens * KV_FULL_RATIO,
    )


def engines_needed(load: Load, objective: Objective, most: int) -> int:
    """The fewest engines, at least one and at most `most`, that keep the objective; `most` if none do."""
    low, high = 1, max(most, 1)
    while low < high:  # more engines never make it worse
        middle = (low + high) // 2
        if forecast(middle, load).keeps(objective):
            high = middle
        else:
            low = middle + 1
    return low


def _slot_wait(engines: int, load: Load) -> tuple[float, bool]:
    service_s, slots = load.rates.service_s, load.slots
    if service_s is None:  # nothing has ended yet
        return 0.0, load.running + load.queued_requests <= engines * slots
    if not service_s:
        return 0.0, True
    inflow_per_s = max(load.requests_per_s, load.running / service_s)
    waiting = load.queued_requests
    return _wait(engines, load, waiting, inflow_per_s, slots / service_s, service_s, slots)


def _wait(
    engines: int,
    load: Load,
    waiting: float,
    inflow_per_s: float,
    speed_per_s: float,
    each_s: float,
    servers: float = 1,
    spread: float = 1.0,
) -> tuple[float, bool]:
    """The wait of one in 20 for `engines` of this speed with so many `servers` each, and whether they keep up.

    `waiting` is there already, in the unit of the rates; a server takes `each_s` for one request, with this `spread`.
    """
    busy_ratio = inflow_per_s / (engines * speed_per_s)
    left = _left(engines, load, waiting, inflow_per_s, speed_per_s)
    queue_s = _wait_p95(engines * servers, min(busy_ratio, FULL_RATIO), each_s) * (1 + spread) / 2
    return queue_s + left / (engines * speed_per_s), busy_ratio <= FULL_RATIO


def _left(engines: int, load: Load, waiting: float, inflow_per_s: float, speed_per_s: float) -> float:
    """What still waits when each part of the fleet has had the same time to work it off, from when it serves.

    The same for all: otherwise an order that is on its way would look worse than one more engine, second for second.
    """
    recovery_s = max(load.horizon_s, LEAST_RECOVERY_S)
    ordered_in_s = min(load.ordered_in_s, load.horizon_s)
    phases = [(min(load.ready, engines), recovery_s)]
    if engines > load.ready:
        phases = [(load.ready, ordered_in_s), (min(load.ordered, engines), recovery_s)]
    if engines > load.ordered:
        phases[1:] = [(load.ordered, load.horizon_s - ordered_in_s), (engines, recovery_s)]
    left = waiting
    for count, seconds in phases:
        left = max(left + seconds * (inflow_per_s - count * speed_per_s), 0.0)
    return left


def _wait_p95(servers: float, busy_ratio: float, each_s: float) -> float:
    """The 95th percentile of the wait in an M/M/c queue."""
    all_busy = busy_ratio ** (math.sqrt(2 * (servers + 1)) - 1)
    if all_busy <= TAIL:
        return 0.0
    return each_s / (servers * (1 - busy_ratio)) * math.log(all_busy / TAIL)
