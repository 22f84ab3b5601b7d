"""Whose request an engine starts next: by rank, then by what each client and session has used. Pure.

Requests wait here, in front of the engine, and not inside it, where the first to come is the first to run. A replica
sees the requests of all ingresses, so all of them share one queue without having to agree on anything.

The order is that of virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). Each
client has a counter of what it has used, divided by its weight: prompt tokens when a request starts, answer tokens as
they are generated. The client with the lowest counter is next. A client that comes back is lifted to the lowest counter
of those that are there, so that nobody saves up while idle; a client that has used more than others waits until they
have had as much. Within a client the same holds for its sessions.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

OUTPUT_COST = 2.0
"""What a token of an answer counts, in tokens of prefill. A decode step of 64 sequences takes about as long as the
prefill of 100 to 200 tokens."""

CACHED_COST = 0.05
"""What a prompt token counts that the engine has cached: it takes room in the cache, but next to no time."""

HEADROOM = 32
"""One of so many slots is not given to a client that has its share, while others come: one of them then need not wait
for an answer to end. It is what fairness may cost in throughput, 3 %."""

RECENT_STARTS = 20
"""Clients count as being there until so many times the slots of other requests have started."""

MAX_ACCOUNTS = 4096
"""How many clients, and sessions of each, are remembered after their last request."""


@dataclass(frozen=True)
class Flow:
    """Who asks. A higher `rank` goes first, whatever was used; `weight` is a client's share against others of its
    rank."""

    client: str = ""
    session: str = ""
    rank: int = 0
    weight: float = 1.0


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
    """Accounts by name."""

    def __init__(self) -> None:
        self.by_name: OrderedDict[str, _Account] = OrderedDict()
        self._floor = 0.0

    def join(self, name: str, flow: Flow) -> _Account:
        """The account of someone who has a request now."""
        active = [one.used for one in self.by_name.values() if not one.is_idle]
        self._floor = max(self._floor, min(active, default=0.0))
        account = self.by_name.setdefault(name, _Account(flow.rank, flow.weight))
        self.by_name.move_to_end(name)
        account.rank, account.weight = flow.rank, flow.weight
        if account.is_idle:
            account.used = max(account.used, self._floor)
        return account

    def forget(self) -> None:
        """Remove who was here longest ago, beyond what is remembered."""
        for name in list(self.by_name)[: max(len(self.by_name) - MAX_ACCOUNTS, 0)]:
            if self.by_name[name].is_idle:
                del self.by_name[name]


class FairQueue:
    """The requests that wait for one engine of that many `slots`. Costs are in tokens of prefill."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._headroom = -(-slots // HEADROOM) if slots > 1 else 0
        self._clients = _Accounts()
        self._waiting: dict[str, Flow] = {}
        self._running: dict[str, Flow] = {}
        self._front: OrderedDict[str, float] = OrderedDict()
        self._starts = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request_id: str, flow: Flow, cost: float, *, first: bool = False) -> None:
        """A request waits. `first`: before all others (it ran before, on a replica that was lost)."""
        client = self._clients.join(flow.client, flow)
        session = client.sessions.join(flow.session, flow)
        self._waiting[request_id] = flow
        (self._front if first else session.waiting)[request_id] = cost
        client.queued += 1
        session.queued += 1

    def next(self) -> str | None:
        """The request that may start next; None where none may: there is none, the slots are taken, or the last of
        them are kept for others."""
        free = self._slots - len(self._running)
        if free <= 0:
            return None
        if self._front:
            return next(iter(self._front))
        clients = [
            one
            for one in self._clients.by_name.values()
            if any(session.waiting for session in one.sessions.by_name.values())
            and (free > self._headroom or not self._has_its_share(one))
        ]
        if not clients:
            return None
        client = min(clients, key=lambda one: (-one.rank, one.used, one.running))
        session = min((one for one in client.sessions.by_name.values() if one.waiting), key=lambda one: one.used)
        return next(iter(session.waiting))

    def start(self, request_id: str) -> None:
        """A request that waits has started. Raises KeyError for one that does not wait."""
        flow = self._waiting.pop(request_id)
        client, session = self._accounts(flow)
        cost = self._front.pop(request_id, None)
        if cost is None:
            cost = session.waiting.pop(request_id)
        self._starts += 1
        client.last_start = self._starts
        for account in (client, session):
            account.queued -= 1
            account.running += 1
        self._running[request_id] = flow
        self.charge(request_id, cost)

    def charge(self, request_id: str, cost: float) -> None:
        """A running request has used so much more; less, where its start was charged too much. Others are ignored."""
        flow = self._running.get(request_id)
        if flow is not None:
            client, session = self._accounts(flow)
            client.used += cost / flow.weight
            session.used += cost

    def leave(self, request_id: str) -> None:
        """A request has ended, or waits no more. Unknown ones are ignored."""
        if (flow := self._running.pop(request_id, None)) is not None:
            client, session = self._accounts(flow)
            client.running -= 1
            session.running -= 1
        elif (flow := self._waiting.pop(request_id, None)) is not None:
            client, session = self._accounts(flow)
            self._front.pop(request_id, None)
            session.waiting.pop(request_id, None)
            client.queued -= 1
            session.queued -= 1
        else:
            return
        client.sessions.forget()
        self._clients.forget()

    def to_displace(self, flow: Flow) -> str | None:
        """The request that waits and has to go where there is room for no more, and this flow has a new one: the last
        one of the client that has the most here, for its weight; None where that is this client, or nobody waits."""
        waiting = [one for one in self._clients.by_name.values() if _last_waiting(one) is not None]
        if not waiting:
            return None
        worst = min(waiting, key=lambda one: (one.rank, -one.held))
        own = self._clients.by_name.get(flow.client)
        held = ((own.running + own.queued if own is not None else 0) + 1) / flow.weight
        if worst is own or worst.rank > flow.rank or (worst.rank == flow.rank and worst.held <= held):
            return None
        return _last_waiting(worst)

    def heads(self) -> list[str]:
        """The requests that are next of each session, and those before all others: what a newcomer waits for."""
        sessions = (one for client in self._clients.by_name.values() for one in client.sessions.by_name.values())
        return [*self._front, *(next(iter(one.waiting)) for one in sessions if one.waiting)]

    def used(self) -> dict[str, float]:
        """What each client has used, divided by its weight."""
        return {name: one.used for name, one in self._clients.by_name.items()}

    def _accounts(self, flow: Flow) -> tuple[_Account, _Account]:
        client = self._clients.by_name[flow.client]
        return client, client.sessions.by_name[flow.session]

    def _has_its_share(self, client: _Account) -> bool:
        recent = self._starts - RECENT_STARTS * self._slots
        weights = sum(
            one.weight for one in self._clients.by_name.values() if not one.is_idle or one.last_start > recent
        )
        others = weights - client.weight
        return others > 0 and client.running >= self._slots * client.weight / weights


def _last_waiting(client: _Account) -> str | None:
    """The last request of the client's session that has the most of them waiting."""
    longest = max((one.waiting for one in client.sessions.by_name.values()), key=len, default=None)
    return next(reversed(longest)) if longest else None
