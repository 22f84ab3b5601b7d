"""An engine that computes nothing, and crashes, hangs or slows down at a chosen token.

Its tokens are a pure function of the prompt and the position, so an attempt that continues another gives the same
tokens as an undisturbed one. It batches as a real engine does: one loop of steps, `max_num_seqs` requests in it and the
rest waiting, one call of the sink per step (`fake_scheduler.py`). It imports neither torch nor vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from serve_app.engine.contract import EngineInfo, EngineStats, ProgressSink, StepSink
from serve_app.engine.fake_config import AnswerSource, FakeEngineConfig
from serve_app.engine.fake_scheduler import FakeRequest, FakeScheduler
from serve_app.engine.fake_script import Fault, FaultKind
from serve_app.engine.watchdog import EngineActivity
from serve_app.protocol.errors import AttemptRefused, EngineDead
from serve_app.protocol.messages import AttemptRequest, CacheChanges, EngineTiming, TokenDelta

__all__ = ["FakeEngine", "FakeEngineConfig", "Fault", "FaultKind"]

STOP, LENGTH = 0, 1
"""vLLM's `FinishReason`."""

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]


@dataclass
class HeldUp:
    """For how long something has held up steps: `past_s`, and since `since_s` again (None: not now)."""

    past_s: float = 0.0
    since_s: float | None = None

    def total_s(self, now_s: float) -> float:
        """Until now."""
        return self.past_s + (now_s - self.since_s if self.since_s is not None else 0.0)


class FakeEngine:
    """`contract.Engine` without a model. `clock` and `sleep` are the event loop's unless a test drives its own."""

    def __init__(
        self, config: FakeEngineConfig, sink: StepSink, *, clock: Clock | None = None, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._config = config
        self._sink = sink
        self._clock: Clock = clock if clock is not None else lambda: asyncio.get_running_loop().time()
        self._sleep = sleep
        self._answers = AnswerSource(config)
        self._scheduler = FakeScheduler(config)
        self._work = asyncio.Event()
        self._dead: str | None = "it has not been started"
        self._loop_task: asyncio.Task[None] | None = None
        self._admitted = 0
        self._steps = 0
        self._hung_at_s: float | None = None
        self._held = {FaultKind.COMPILE: HeldUp(), FaultKind.STARVE: HeldUp()}
        self.first_token_sent = asyncio.Event()
        """Set when any attempt's first token has gone to the sink. For tests."""
        self.aborted = asyncio.Event()
        """Set when any attempt has been aborted. For tests."""

    async def start(self, progress: ProgressSink) -> EngineInfo:
        """See `contract.Engine`."""
        progress("pretending to load weights")
        if self._config.start_s:
            await self._sleep(self._config.start_s)
        self._dead = None
        self._loop_task = asyncio.get_running_loop().create_task(self._run_steps(), name="fake-engine-steps")
        progress("ready")
        return EngineInfo(
            max_model_len=self._config.max_model_len,
            max_num_seqs=self._config.max_num_seqs,
            max_num_batched_tokens=self._config.step_tokens,
            kv_cache_tokens=self._config.capacity_tokens,
            model="fake",
            engine_version="fake",
            start_s=self._config.start_s,
            reports_cache=self._config.prefix_caching,
        )

    async def run(self, attempt: AttemptRequest) -> None:
        """See `contract.Engine`."""
        await self.check()
        running = self._admit(attempt)
        try:
            await running.ended
        except asyncio.CancelledError:
            await self.abort(attempt.attempt_id)
            raise
        finally:
            self._forget(attempt.attempt_id)

    async def abort(self, attempt_id: str) -> None:
        """See `contract.Engine`."""
        running = self._forget(attempt_id)
        if running is None:
            return
        if not running.ended.done():
            running.ended.set_result(None)
        self.aborted.set()

    async def check(self) -> None:
        """See `contract.Engine`."""
        if self._dead is not None:
            raise EngineDead(self._dead)

    def fail(self, reason: str) -> None:
        """See `contract.Engine`."""
        self._die(reason)

    def stats(self) -> EngineStats:
        """See `contract.Engine`."""
        return EngineStats(
            running=len(self._scheduler.running),
            unfinished=len(self._scheduler.all()),
            kv_usage_ratio=self._scheduler.kv_usage_ratio,
            steps=self._steps,
        )

    def activity(self) -> EngineActivity:
        """See `contract.Engine`. It moves all the time, unless it hangs."""
        cpu_s = {0: self._hung_at_s if self._hung_at_s is not None else self._clock()}
        return EngineActivity(cpu_s, self.compilers())

    def compilers(self) -> Mapping[int, float]:
        """See `contract.Engine`: one, which uses a core while it runs."""
        held = self._held[FaultKind.COMPILE]
        return {1: held.total_s(self._clock())} if held.since_s is not None else {}

    def cpu_wait(self) -> Mapping[int, float]:
        """See `contract.Engine`. Not this process' own: the tests' machine is short of CPU at times."""
        return {0: self._held[FaultKind.STARVE].total_s(self._clock())}

    def under_way(self) -> str:
        """See `contract.Engine`."""
        longest = max((running.tokens for running in self._scheduler.all()), default=0)
        return f"{len(self._scheduler.all())} requests, longest context {longest:,} tokens"

    def cache_changes(self) -> CacheChanges | None:
        """See `contract.Engine`."""
        return self._scheduler.cache.log.take()

    def reset_prefix_cache(self) -> None:
        """Give up everything that is cached and that no request uses, as vLLM does when it is told to."""
        self._scheduler.cache.clear()

    async def shutdown(self) -> None:
        """See `contract.Engine`."""
        self._die("it has been shut down")
        task, self._loop_task = self._loop_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _admit(self, attempt: AttemptRequest) -> FakeRequest:
        limit = self._config.max_model_len
        if (tokens := attempt.spec.prompt_tokens) >= limit:
            raise AttemptRefused(f"the prompt has {tokens} tokens; the engine holds {limit} with the answer")
        if attempt.attempt_id in self._scheduler:
            raise AttemptRefused(f"attempt {attempt.attempt_id} is already running")
        self._admitted += 1
        answer = self._answers.answer(attempt.spec.prompt_token_ids)
        scripted = (fault for fault in answer.faults if fault.on_resume or not attempt.emitted_token_ids)
        running = FakeRequest(
            attempt,
            answer,
            (*scripted, *(fault for fault in self._config.faults if self._strikes(fault, attempt))),
            asyncio.get_running_loop().create_future(),
            position=len(attempt.emitted_token_ids),
            pages=self._scheduler.pages(attempt),
        )
        self._scheduler.add(running, self._clock())
        self._work.set()
        return running

    def _strikes(self, fault: Fault, attempt: AttemptRequest) -> bool:
        if attempt.emitted_token_ids and not fault.on_resume:
            return False
        return attempt.spec.request_id in fault.request_ids or (fault.every > 0 and self._admitted % fault.every == 0)

    def _forget(self, attempt_id: str) -> FakeRequest | None:
        running = self._scheduler.take(attempt_id)
        if not self._scheduler.all():
            self._work.clear()
        return running

    def _die(self, reason: str) -> None:
        if self._dead is None:
            self._dead = reason
        for running in self._scheduler.all():
            if not running.ended.done():
                running.ended.set_exception(EngineDead(self._dead))

    async def _run_steps(self) -> None:
        while True:
            await self._work.wait()
            prefilled = self._scheduler.schedule(self._clock())
            await self._sleep(self._step_s(prefilled))
            due = self._scheduler.due(self._clock())
            if not due:
                self._steps += bool(prefilled)
                continue
            struck = [fault.kind for running in due for fault in self._present_faults(running)]
            if FaultKind.CRASH in struck:
                self._die("it crashed, as configured")
                return
            if FaultKind.HANG in struck:
                self._hung_at_s = self._clock()
            if FaultKind.HANG in struck or FaultKind.SPIN in struck:
                return  # healthy to `check`, but no further step comes
            await self._hold_up([fault for running in due for fault in self._present_faults(running)])
            self._step([running for running in due if running.attempt.attempt_id in self._scheduler])

    async def _hold_up(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if (held := self._held.get(fault.kind)) is not None:
                held.since_s = self._clock()
                await self._sleep(fault.for_s)
                held.past_s, held.since_s = held.total_s(self._clock()), None

    def _step_s(self, prefilled: int) -> float:
        """How long a step takes that computes so many tokens of prompts; without work, until the next token is due."""
        running, rate = self._scheduler.running.values(), self._config.prefill_tokens_per_s
        prefill_s = prefilled / rate if rate else 0.0
        if prefill_s or any(one.has_token for one in running):
            slow = [fault.factor for one in running for fault in one.faults if self._is_slowed(one, fault)]
            return (self._config.gap_s + prefill_s) * max(slow, default=1.0)
        return max(0.0, min((one.first_token_due_s for one in running), default=0.0) - self._clock())

    @staticmethod
    def _is_slowed(running: FakeRequest, fault: Fault) -> bool:
        return fault.kind is FaultKind.SLOW and running.position >= fault.at_token

    @staticmethod
    def _present_faults(running: FakeRequest) -> list[Fault]:
        return [fault for fault in running.faults if fault.at_token == running.position]

    def _step(self, due: Sequence[FakeRequest]) -> None:
        self._steps += 1
        deltas = [self._advance(running) for running in due]
        self._sink(deltas)
        self.first_token_sent.set()
        for delta in deltas:
            if delta.finish_reason is not None:
                running = self._forget(delta.attempt_id)
                if running is not None and not running.ended.done():
                    running.ended.set_result(None)

    def _advance(self, running: FakeRequest) -> TokenDelta:
        attempt, start = running.attempt, running.position
        told = running.has_token or start > 0
        delta = TokenDelta(attempt.attempt_id, start, [], cached_tokens=None if told else running.cached_tokens)
        if not running.has_token:
            delta.timing = EngineTiming(
                engine_queue_s=running.started_s - running.arrived_s, prefill_s=self._clock() - running.started_s
            )
        faults_ahead = [fault.at_token - start for fault in running.faults if fault.at_token > start]
        for _ in range(min([self._config.tokens_per_step, *faults_ahead])):
            if running.position < attempt.spec.max_tokens:
                delta.token_ids.append(self._next_token(running))
                running.position += 1
            delta.finish_reason, delta.stop_reason = self._finish(running, delta.token_ids)
            if delta.finish_reason is not None:
                break
        running.has_token = True
        self._scheduler.grow(running, delta.token_ids)
        return delta

    def _next_token(self, running: FakeRequest) -> int:
        attempt, position = running.attempt, running.position
        may_end = not attempt.spec.ignore_eos and position + 1 >= attempt.spec.min_tokens
        if may_end and running.answer.eos_token_id is not None and position >= running.answer.length:
            return running.answer.eos_token_id
        return running.answer.token(position)

    def _finish(self, running: FakeRequest, new_token_ids: Sequence[int]) -> tuple[int | None, int | None]:
        attempt = running.attempt
        token = new_token_ids[-1] if new_token_ids else None
        if token is not None and running.position >= attempt.spec.min_tokens:
            if token == running.answer.eos_token_id and not attempt.spec.ignore_eos:
                return STOP, None
            if token in attempt.spec.stop_token_ids:
                return STOP, token
        if running.position >= attempt.spec.max_tokens or running.tokens >= self._config.max_model_len:
            return LENGTH, None
        return None, None
