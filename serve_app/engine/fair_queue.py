"""Whose request an engine starts next: by rank, then by what each client and session has used. Pure.

Requests wait here, in front of the engine, and not inside it, where the first to come is the first to run. A replica
sees the requests of all ingresses, so all of them share one queue without having to agree on anything.

The order is that of virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). Each
client has a counter of what it has used, divided by its weight: prompt tokens when a request starts, answer tokens as
they are generated. The client with the lowest counter is next. A client that comes back is lifted to what each one
that was there has had in the meantime (the virtual time of weighted fair queueing: it passes as work is done, slower
the more clients share it). So nobody saves up while idle, who was alone owes nothing for it, and clients that keep
coming cannot hold off one that has used more than they. Within a client the same holds for its sessions. Each rank has
a virtual time of its own: a client of a lower one that waits does not share what the higher ones have.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

OUTPUT_COST = 2.0
"""What a token of an answer counts, in tokens of prefill. A decode step of 64 sequences takes about as long as the
prefill of 100 to 200 tokens."""

CACHED_COST = 0.05
"""What a prompt token counts that the engine has cached: it takes room in the cache, but next to no time."""

HEADROOM = 32
"""One of so many slots is not given to a client that has its share, while others come: one of them then need not wait
for an answer to end. It is what fairness may cost in throughput, 3 %."""

OVERDUE_EVERY = 16
"""Of so many starts, one may be that of a lower class that has waited for long, though a higher class waits: what this
costs the higher class is bounded, and what the lower one waits, too."""

RECENT_STARTS = 20
"""Clients count as being there until so many times the slots of other requests have started."""

MAX_ACCOUNTS = 4096
"""How many clients, and sessions of each, are remembered after their last request."""


@dataclass(frozen=True)
class Flow:
    """Who asks. A higher `rank` (a `ServiceClass`) goes first, whatever was used; `weight` is a client's share against
    others of its rank."""

    client: str = ""
    session: str = ""
    rank: int = 0
    weight: float = 1.0

    @property
    def account(self) -> str:
        """The name of its account: a client's requests of another rank are counted apart."""
        return f"{self.rank} {self.client}"


def prompt_cost(computed_tokens: int, cached_tokens: int) -> float:
    """What a prompt counts, of which so many tokens are computed and so many cached."""
    return computed_tokens + CACHED_COST * cached_tokens


@dataclass
class _Account:
    """What one client, or one session, has used; `waiting` are the costs of a session's requests, in their order."""

    rank: int
    weight: float
    used: float = 0.0
    running: int = 0
    queued: int = 0
    last_start: int = 0
    waiting: OrderedDict[str, float] = field(default_factory=OrderedDict)
    sessions: _Accounts = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = _Accounts()

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.queued

    @property
    def held(self) -> float:
        """How many requests it has here, for its weight."""
        return (self.running + self.queued) / self.weight


class _Accounts:
    """Accounts by name. What is done for each step or request looks at those with requests only: a service remembers
    thousands of sessions that have none."""

    def __init__(self) -> None:
        self.by_name: OrderedDict[str, _Account] = OrderedDict()
        self.active: dict[str, _Account] = {}
        self.waiting: dict[str, _Account] = {}
        self._virtual_time: defaultdict[int, float] = defaultdict(float)
        self._active_weight: defaultdict[int, float] = defaultdict(float)

    def charge(self, name: str, cost: float) -> None:
        """One of its running requests has used so much."""
        account = self.by_name[name]
        account.used += cost / account.weight
        self._virtual_time[account.rank] += max(cost, 0.0) / max(self._active_weight[account.rank], account.weight)

    def join(self, name: str, flow: Flow) -> _Account:
        """The account of someone who has a request that waits now."""
        account = self.by_name.get(name)
        if account is None:
            account = self.by_name[name] = _Account(flow.rank, flow.weight)
        self.by_name.move_to_end(name)
        if account.weight != flow.weight:  # the keys file has changed
            self._active_weight[account.rank] += 0.0 if account.is_idle else flow.weight - account.weight
            account.weight = flow.weight
        if account.is_idle:
            account.used = max(account.used, self._virtual_time[account.rank])
            self._active_weight[account.rank] += account.weight
        self.active[name] = account
        account.queued += 1
        return account

    def started(self, name: str) -> None:
        """One of its requests runs now."""
        account = self.by_name[name]
        account.queued -= 1
        account.running += 1

    def left(self, name: str, *, ran: bool) -> None:
        """One of its requests, which `ran` or waited, has left. Who was here longest ago is forgotten."""
        account = self.by_name[name]
        if ran:
            account.running -= 1
        else:
            account.queued -= 1
        if account.is_idle:
            del self.active[name]
            self._active_weight[account.rank] -= account.weight
        while len(self.by_name) > MAX_ACCOUNTS + len(self.active):
            oldest = next(iter(self.by_name))
            if oldest in self.active:
                self.by_name.move_to_end(oldest)
            else:
                del self.by_name[oldest]

    def note_waiting(self, name: str, *, is_waiting: bool) -> None:
        """Whether it has a request that can be chosen."""
        if is_waiting:
            self.waiting[name] = self.by_name[name]
        else:
            self.waiting.pop(name, None)


class FairQueue:
    """The requests that wait for one engine of that many `slots`. Costs are in tokens of prefill, times in seconds of
    one clock. Who has waited for `patience_s` is started now and then (`OVERDUE_EVERY`), whatever its rank."""

    def __init__(self, slots: int, patience_s: float = math.inf) -> None:
        self._slots = slots
        self._patience_s = patience_s
        self._headroom = slots // HEADROOM
        self._clients = _Accounts()
        self._waiting: dict[str, Flow] = {}
        self._since: dict[int, OrderedDict[str, float]] = {}
        """When each that waits has come, by rank."""
        self._overdue_start = 0
        """At which start one that was overdue was chosen last."""
        self._running: dict[str, Flow] = {}
        self._unsettled: dict[str, float] = {}
        """What running requests have used, and their accounts do not know of yet."""
        self._front: OrderedDict[str, float] = OrderedDict()
        self._kept: set[str] = set()
        self._out_of_turn: set[str] = set()
        self._starts = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(
        self,
        request_id: str,
        flow: Flow,
        cost: float,
        *,
        first: bool = False,
        kept: bool = False,
        now_s: float = 0.0,
    ) -> None:
        """A request waits. `first`: before all others (it ran before, on a replica that was lost). `kept`: it is not
        displaced (a replica had taken it before)."""
        self._settle()
        if kept:
            self._kept.add(request_id)
        self._since.setdefault(flow.rank, OrderedDict())[request_id] = now_s
        client = self._clients.join(flow.account, flow)
        session = client.sessions.join(flow.session, Flow(flow.client, flow.session, flow.rank))
        self._waiting[request_id] = flow
        (self._front if first else session.waiting)[request_id] = cost
        self._note_waiting(flow)

    def next(self, now_s: float = 0.0) -> str | None:
        """The request that may start next; None where none may: there is none, the slots are taken, or the last of
        them are kept for others."""
        if not self._waiting:
            return None
        self._settle()
        free = self._slots - len(self._running)
        if free > 0 and not self._front and (overdue := self._overdue(now_s)) is not None:
            return overdue
        return self._next_in_order(free)

    def _next_in_order(self, free: int) -> str | None:
        """The next one where so many slots were free and nobody overdue. Where the highest class that waits may not
        have the last of them, no lower one may."""
        if free <= 0:
            return None
        if self._front:
            return next(iter(self._front))
        highest = max((one.rank for one in self._clients.waiting.values()), default=0)
        clients = [one for one in self._clients.waiting.values() if one.rank == highest]
        if free <= self._headroom:
            weights = self._recent_weights()
            clients = [one for one in clients if not self._has_its_share(one, weights)]
        if not clients:
            return None
        client = min(clients, key=lambda one: (one.used, one.running))
        session = min(client.sessions.waiting.values(), key=lambda one: one.used)
        return next(iter(session.waiting))

    def gains(self, rank: int, coming: int) -> bool:
        """Whether one more slot would be for a request of at least this rank, when all slots are taken and `coming` of
        them are about to be free. That an overdue one may take it does not count: that is one in `OVERDUE_EVERY`."""
        waiting = sum(len(those) for of, those in self._since.items() if of >= rank)
        if waiting <= coming:
            return False
        self._settle()
        chosen = self._next_in_order(self._slots - len(self._running) + coming + 1)
        return chosen is not None and self._waiting[chosen].rank >= rank

    def was_overdue(self, request_id: str) -> bool:
        """Whether a request that runs was started before its turn, because it had waited for long."""
        return request_id in self._out_of_turn

    @property
    def is_full(self) -> bool:
        """Whether all slots are taken."""
        return len(self._running) >= self._slots

    def promote(self, request_id: str) -> None:
        """One that waits goes before all others now."""
        flow = self._waiting[request_id]
        self._out_of_turn.add(request_id)
        if (cost := self._accounts(flow)[1].waiting.pop(request_id, None)) is not None:
            self._front[request_id] = cost
            self._note_waiting(flow)

    def start(self, request_id: str) -> None:
        """A request that waits has started. Raises KeyError for one that does not wait."""
        flow = self._waiting.pop(request_id)
        self._since[flow.rank].pop(request_id)
        self._kept.discard(request_id)
        if any(waiting for rank, waiting in self._since.items() if rank > flow.rank):
            self._overdue_start = self._starts
            if request_id not in self._front:
                self._out_of_turn.add(request_id)
        client, session = self._accounts(flow)
        cost = self._front.pop(request_id, None)
        if cost is None:
            cost = session.waiting.pop(request_id)
        self._note_waiting(flow)
        self._starts += 1
        client.last_start = self._starts
        self._clients.started(flow.account)
        client.sessions.started(flow.session)
        self._running[request_id] = flow
        self._charge(flow, cost)

    def charge(self, request_id: str, cost: float) -> None:
        """A running request has used so much more. Others are ignored."""
        # With every chunk of a stream: it goes into the accounts when they are looked at, or somebody comes or leaves.
        if request_id in self._running:
            self._unsettled[request_id] = self._unsettled.get(request_id, 0.0) + cost

    def leave(self, request_id: str) -> None:
        """A request has ended, or waits no more. Unknown ones are ignored."""
        self._settle()
        ran = (flow := self._running.pop(request_id, None)) is not None
        if flow is None and (flow := self._waiting.pop(request_id, None)) is None:
            return
        self._kept.discard(request_id)
        self._out_of_turn.discard(request_id)
        client, session = self._accounts(flow)
        self._since[flow.rank].pop(request_id, None)
        self._front.pop(request_id, None)
        session.waiting.pop(request_id, None)
        self._note_waiting(flow)
        client.sessions.left(flow.session, ran=ran)
        self._clients.left(flow.account, ran=ran)

    def to_displace(self, flow: Flow) -> str | None:
        """The request that waits and has to go where there is room for no more, and this flow has a new one: the last
        one of the client that has the most here, for its weight; None where that is this client, or nobody waits who
        may have to go."""
        waiting = ((one, self._last_waiting(one)) for one in self._clients.waiting.values())
        may_go = [(one, last) for one, last in waiting if last is not None]
        if not may_go:
            return None
        worst, last = min(may_go, key=lambda pair: (pair[0].rank, -pair[0].held))
        own = self._clients.by_name.get(flow.account)
        held = ((own.running + own.queued if own is not None else 0) + 1) / flow.weight
        if worst is own or worst.rank > flow.rank or (worst.rank == flow.rank and worst.held <= held):
            return None
        return last

    def heads(self) -> list[str]:
        """The requests that are next of each session, and those before all others: what a newcomer waits for."""
        sessions = (one for client in self._clients.waiting.values() for one in client.sessions.waiting.values())
        return [*self._front, *(next(iter(one.waiting)) for one in sessions)]

    def used(self) -> dict[str, float]:
        """What each client has used, divided by its weight."""
        self._settle()
        return {name: one.used for name, one in self._clients.by_name.items()}

    def _settle(self) -> None:
        """Put into the accounts what has been used. Virtual time depends on who is there: it is called before anybody
        comes or leaves."""
        if not self._unsettled:
            return
        unsettled, self._unsettled = self._unsettled, {}
        for request_id, cost in unsettled.items():
            self._charge(self._running[request_id], cost)

    def _charge(self, flow: Flow, cost: float) -> None:
        self._clients.charge(flow.account, cost)
        self._clients.by_name[flow.account].sessions.charge(flow.session, cost)

    def _accounts(self, flow: Flow) -> tuple[_Account, _Account]:
        client = self._clients.by_name[flow.account]
        return client, client.sessions.by_name[flow.session]

    def _note_waiting(self, flow: Flow) -> None:
        client, session = self._accounts(flow)
        client.sessions.note_waiting(flow.session, is_waiting=bool(session.waiting))
        self._clients.note_waiting(flow.account, is_waiting=bool(client.sessions.waiting))

    def _overdue(self, now_s: float) -> str | None:
        """The oldest request of a rank below the highest that waits, if it has waited for long and it is its turn."""
        if self._starts - self._overdue_start < OVERDUE_EVERY:
            return None
        ranks = [rank for rank, waiting in self._since.items() if waiting]
        oldest = [next(iter(self._since[rank].items())) for rank in ranks if rank < max(ranks)]
        request_id, since_s = min(oldest, key=lambda one: one[1], default=("", math.inf))
        return request_id if now_s - since_s >= self._patience_s else None

    def _recent_weights(self) -> dict[int, float]:
        """The weights of the clients that are here, or were a moment ago, by rank."""
        recent = self._starts - RECENT_STARTS * self._slots
        weights: dict[int, float] = {}
        for one in self._clients.by_name.values():
            if not one.is_idle or one.last_start > recent:
                weights[one.rank] = weights.get(one.rank, 0.0) + one.weight
        return weights

    def _has_its_share(self, client: _Account, weights: Mapping[int, float]) -> bool:
        """Whether it runs its share of the slots. Clients of lower ranks do not count: they go after it."""
        others = sum(weight for rank, weight in weights.items() if rank >= client.rank)
        return others > client.weight and client.running >= self._slots * client.weight / others

    def _last_waiting(self, client: _Account) -> str | None:
        """The last request that may be displaced, of the client's session that has the most waiting."""
        for session in sorted(client.sessions.waiting.values(), key=lambda one: -len(one.waiting)):
            if (last := next((one for one in reversed(session.waiting) if one not in self._kept), None)) is not None:
                return last
        return None
