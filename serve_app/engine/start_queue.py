"""Attempts that wait to be started in the engine, in the order of `fair_queue.py`.

The engine gets as many as it runs at a time, and of prompts only as much as keeps it busy. What it has, it runs in the
order in which it came: whatever waits there could be overtaken by nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from serve_app.engine.fair_queue import OUTPUT_COST, FairQueue, Flow, prompt_cost
from serve_app.protocol.errors import ReplicaFull, WaitedTooLong

STEPS_AHEAD = 1.25
"""So many steps' worth of prompts the engine has at a time, without the longest of them. What is there goes before all
that comes. Less leaves steps short: with 0.5 it finishes 11 % fewer prompts of 1,000 tokens (docs/decisions/0026)."""

PATIENCE = 0.5
"""After this share of the longest wait an attempt of a lower class is overdue: there is time left to start it."""


def engine_takes(prefilling: Collection[int], tokens: int, step_tokens: int) -> bool:
    """Whether an engine that computes `step_tokens` of prompts in a step gets one more prompt of so many `tokens` now,
    beside those that it is `prefilling`. The longest of them all does not count: it would keep short ones waiting for
    as long as it takes."""
    return sum(prefilling) + tokens - max(*prefilling, tokens, 0) <= int(STEPS_AHEAD * step_tokens)


class Abandoned(Exception):
    """Nobody waits for this attempt any more."""


class StartQueue:
    """The attempts of one engine with that many `slots`, which computes `step_tokens` of prompts in a step. None waits
    longer than `max_wait_s`. `clock` gives seconds."""

    def __init__(self, slots: int, step_tokens: int, max_wait_s: float, clock: Callable[[], float]) -> None:
        self._queue = FairQueue(slots, PATIENCE * max_wait_s)
        self._step_tokens = step_tokens
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._tokens: dict[str, int] = {}  # of those that wait
        self._prefilling: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._queue)

    async def turn(
        self,
        attempt_id: str,
        flow: Flow,
        prefill_tokens: int,
        cached_tokens: int,
        *,
        first: bool = False,
        begun: bool = False,
        kept: bool = False,
        on_full: Callable[[], None] = lambda: None,
    ) -> float:
        """Return when it may start: after how many seconds. Call `leave` when it has ended, however `turn` ends.
        `on_full` is called where it has to wait because all slots are taken. One that has `begun` to answer is not
        refused after the longest wait: it goes before all others then. Nor is it displaced, or one that is `kept`.

        Raises `WaitedTooLong` after `max_wait_s`, `ReplicaFull` if it was displaced, `Abandoned`, and what `fail`
        was given.
        """
        since_s = self._clock()
        waiter = self._waiters[attempt_id] = asyncio.get_running_loop().create_future()
        self._tokens[attempt_id] = prefill_tokens
        cost = prompt_cost(prefill_tokens, cached_tokens)
        self._queue.put(attempt_id, flow, cost, first=first, kept=kept or begun, now_s=since_s)
        self._start_next()
        if not waiter.done() and self._queue.is_full:
            on_full()
        await asyncio.wait({waiter}, timeout=self._max_wait_s)
        if not waiter.done():
            if not begun:
                raise WaitedTooLong(f"it has waited {self._max_wait_s:.0f} s")
            self._queue.promote(attempt_id)
            self._start_next()
        await waiter
        return self._clock() - since_s

    def gains(self, rank: int, coming: int) -> bool:
        """Whether one more slot, beside those that are `coming`, would be for this rank or a higher one."""
        return self._queue.gains(rank, coming)

    def was_overdue(self, attempt_id: str) -> bool:
        """Whether an attempt that runs was started before its turn, because it had waited for long."""
        return self._queue.was_overdue(attempt_id)

    def tokens_before_newcomer(self) -> int:
        """How many prompt tokens are computed before those of a client or session that has nothing here."""
        return sum(self._prefilling.values()) + sum(self._tokens[name] for name in self._queue.heads())

    def waiting_tokens(self) -> int:
        """How many prompt tokens the engine has not been given yet."""
        return sum(self._tokens.values())

    def first_token(self, attempt_id: str) -> None:
        """Its prompt has been computed."""
        if self._prefilling.pop(attempt_id, None) is not None:
            self._start_next()

    def generated(self, attempt_id: str, tokens: int) -> None:
        """It has so many more tokens."""
        self._queue.charge(attempt_id, OUTPUT_COST * tokens)

    def leave(self, attempt_id: str) -> None:
        """It has ended, or waits no more."""
        self._waiters.pop(attempt_id, None)
        self._tokens.pop(attempt_id, None)
        self._prefilling.pop(attempt_id, None)
        self._queue.leave(attempt_id)
        self._start_next()

    def displace(self, flow: Flow) -> bool:
        """Refuse one that waits, to make room for a new one of this flow; False where none has to go."""
        attempt_id = self._queue.to_displace(flow)
        if attempt_id is None:
            return False
        self._queue.leave(attempt_id)
        self._end(attempt_id, ReplicaFull("it is full, and others have less here than this client"))
        return True

    def abandon(self, attempt_id: str) -> None:
        """If it waits, it waits no more."""
        self._end(attempt_id, Abandoned())

    def fail(self, error: Exception) -> None:
        """Nothing starts any more: whoever waits gets this error."""
        for attempt_id in list(self._waiters):
            self._end(attempt_id, error)

    def _end(self, attempt_id: str, error: Exception) -> None:
        waiter = self._waiters.get(attempt_id)
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _start_next(self) -> None:
        while (attempt_id := self._queue.next(self._clock())) is not None:
            tokens, waiter = self._tokens[attempt_id], self._waiters[attempt_id]
            if not engine_takes(self._prefilling.values(), tokens, self._step_tokens):
                return
            self._queue.start(attempt_id)
            self._prefilling[attempt_id] = self._tokens.pop(attempt_id)
            if not waiter.done():
                waiter.set_result(None)
