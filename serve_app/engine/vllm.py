"""Real vLLM behind the engine contract: raw requests in, each step's raw outputs out.

The ingress runs vLLM's input and output processors. So a request arrives here as vLLM's own `EngineCoreRequest`, and
the outputs of a step leave unchanged, observed at `AsyncLLM`'s engine core (`vllm_io.py`).

vLLM's cache of images in the engine core is mirrored by exactly one front end: this process. An ingress keeps a cache
without a mirror (vLLM's `MultiModalProcessorOnlyCache`); it gets one because its configuration says that it is one of
several: `_api_process_count = 2`. What ingresses have sent is kept here, too (`protocol/images.py`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from serve_app.engine import activity, warm_up
from serve_app.engine.child import ProcessReport
from serve_app.engine.contract import EngineInfo, EngineStats, ProgressSink, StepSink
from serve_app.engine.gang import Gang
from serve_app.engine.kv_events import KvEvents
from serve_app.engine.load_facts import RecentRatio
from serve_app.engine.vllm_environment import START_TIMEOUT_S
from serve_app.engine.vllm_io import add_request, engine_request, observe_core, token_delta
from serve_app.engine.vllm_process import (
    EngineReports,
    Started,
    engine_core_children,
    engine_core_processes,
    engine_info,
    how_cores_ended,
    kill_engine_cores,
    start_engine,
    stop_engine,
)
from serve_app.engine.watchdog import EngineActivity
from serve_app.protocol.errors import AttemptRefused, EngineDead
from serve_app.protocol.messages import AttemptRequest, CacheChanges, TokenDelta

if TYPE_CHECKING:  # importing vLLM takes seconds; `python -m serve_app.vllm_patches.vllm_api_check` reads these
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

logger = logging.getLogger(__name__)

LENGTH = 1
"""vLLM's `FinishReason.LENGTH`."""

LOG_PERIOD_S = 10.0

DRAFT_MEMORY_TOKENS = 20_000.0
"""Acceptance is that of about so many drafted tokens: some seconds of a busy engine."""
"""How often vLLM's console logger prints its line, as in vLLM's own server."""


@dataclass(eq=False)
class _Running:
    """An attempt in the engine. `position` counts the request's tokens so far, earlier attempts' included."""

    attempt_id: str
    position: int
    prompt_tokens: int
    ended: asyncio.Future[None]
    has_token: bool = False


@dataclass(frozen=True)
class _Live:
    """A started engine. `max_model_len` in tokens."""

    llm: AsyncLLM
    max_model_len: int
    encoder: MsgpackEncoder
    decoder: MsgpackDecoder
    image_decoder: MsgpackDecoder


class VllmEngine:
    """`contract.Engine` over vLLM. `argv` are the options of vLLM's server, `stat_loggers` vLLM's own factories.

    With `warms_up`, `start` returns when requests of every kind have been run (`warm_up.py`). `gang_host` is this
    node's address, for an engine whose workers are Ray actors on this node and others (`gang.py`). vLLM gives up on a
    start after `start_timeout_s`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        sink: StepSink,
        stat_loggers: Sequence[Any] = (),
        *,
        warms_up: bool = False,
        gang_host: str | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._argv = tuple(argv)
        self._warms_up = warms_up
        self._sink = sink
        self._stat_loggers = tuple(stat_loggers)
        self._others: set[int] = set()
        self._starting: asyncio.Future[Started] | None = None
        self._reports: EngineReports | None = None
        self._gang_host = gang_host
        self._start_timeout_s = start_timeout_s
        self._gang = Gang(self._take_report)
        self._kv_events = KvEvents()
        self._workers = 0
        self._live: _Live | None = None
        self._dead: str | None = "it has not been started"
        self._cores: list[BaseProcess] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._attempts: dict[str, _Running] = {}
        self._queued_prompt_tokens = 0
        self._schedulers: dict[int, Any] = {}
        self._ranks = 1
        self._gpu: activity.GpuReader = lambda: None
        self._pids: tuple[int, ...] = ()
        self._steps = 0
        self._acceptance = RecentRatio(DRAFT_MEMORY_TOKENS)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def start(self, progress: ProgressSink) -> EngineInfo:
        """See `contract.Engine`."""
        began_s = time.monotonic()
        reports = self._reports = EngineReports(progress)
        reports.open()
        if self._gang_host is not None:
            await self._gang.open(self._gang_host)
        self._others = {process.pid for process in engine_core_processes()}
        self._starting = asyncio.ensure_future(
            asyncio.to_thread(
                start_engine, self._argv, self._stat_loggers, reports.say, self._kv_events, self._start_timeout_s
            )
        )
        try:
            started = await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            await self.shutdown()
            raise
        except Exception as error:  # whatever vLLM's start raises: there is no engine, and this is why
            self._close_reports()
            traceback.clear_frames(error.__traceback__)  # they hold vLLM's half-built client and its sockets
            if isinstance(error, EngineDead):
                raise
            raise EngineDead(reports.error or f"{type(error).__name__}: {error}") from error
        reports.started()
        self._go_live(started)
        if self._warms_up:
            try:
                await self._warm_up(started, reports.say)
            except BaseException:
                await self.shutdown()
                raise
        reports.say("ready")
        reports_cache = self._kv_events.active
        return engine_info(started.vllm_config, time.monotonic() - began_s, reports_cache=reports_cache)

    def _go_live(self, started: Started) -> None:
        from vllm.multimodal.inputs import MultiModalKwargsItem
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        live = self._live = _Live(
            started.llm,
            started.vllm_config.model_config.max_model_len,
            encoder=MsgpackEncoder(),
            decoder=MsgpackDecoder(EngineCoreRequest),
            image_decoder=MsgpackDecoder(MultiModalKwargsItem),
        )
        self._dead = None
        parallel = started.vllm_config.parallel_config
        self._ranks = parallel.data_parallel_size
        self._workers = parallel.world_size if parallel.distributed_executor_backend == "ray" else 0
        self._kv_events.follow(started.vllm_config)
        self._cores = engine_core_children(self._others)
        self._gpu = activity.gpu_reader()
        self._pids = (os.getpid(), *(process.pid for process in started.processes))
        observe_core(live.llm, functools.partial(self._take_step, live), functools.partial(self._lose, live))
        self._tasks = [asyncio.get_running_loop().create_task(self._log(live), name="engine-log")]

    async def _warm_up(self, started: Started, say: ProgressSink) -> None:
        """Run requests of every kind. Nobody reads their tokens, and vLLM's metrics do not count them."""
        live = self._must_live()
        sink, self._sink = self._sink, lambda _deltas: None
        figures, live.llm._logger_ref[0] = live.llm._logger_ref[0], None  # noqa: SLF001  # vLLM's own switch for them
        kinds = warm_up.kinds(started.vllm_config)
        try:
            # Making an image's request takes seconds; meanwhile the loop must receive the processes' reports.
            while (kind := await asyncio.to_thread(next, kinds, None)) is not None:
                say(f"warming up: {kind.name}")
                attempts = [warm_up.attempt_of(request, live.encoder) for request in kind.requests]
                for ended in await asyncio.gather(*map(self.run, attempts), return_exceptions=True):
                    if isinstance(ended, AttemptRefused):
                        logger.warning("a warm-up request was refused: %s: %s", kind.name, ended)
                    elif ended is not None:
                        raise ended
            await live.llm.reset_prefix_cache()
        finally:
            self._sink = sink
            live.llm._logger_ref[0] = figures  # noqa: SLF001  # see above

    def _must_live(self) -> _Live:
        if self._live is not None and self._live.llm.engine_core.resources.engine_dead:
            self._die(how_cores_ended(self._cores))
        if self._live is None or self._dead is not None:
            raise EngineDead(self._dead)
        return self._live

    async def check(self) -> None:
        """See `contract.Engine`."""
        self._must_live()

    def activity(self) -> EngineActivity:
        """See `contract.Engine`."""
        own = activity.read([core for core in engine_core_processes() if core.pid not in self._others], self._gpu)
        return self._gang.activity(own, self._workers) if self._workers else own

    def compilers(self) -> Mapping[int, float]:
        """See `contract.Engine`. Of workers on other nodes, those of the last second or two."""
        if self._workers:
            return self.activity().compiler_cpu_s
        return activity.compilers([core for core in engine_core_processes() if core.pid not in self._others])

    def cpu_wait(self) -> Mapping[int, float]:
        """See `contract.Engine`."""
        return activity.cpu_wait(self._pids)

    def under_way(self) -> str:
        """See `contract.Engine`."""
        attempts = self._attempts.values()
        longest = max((one.prompt_tokens if not one.has_token else one.position for one in attempts), default=0)
        prefilling = sum(not one.has_token for one in attempts)
        return (
            f"{len(attempts)} requests, {prefilling} without a token yet ({self._queued_prompt_tokens:,} tokens), "
            f"longest {longest:,} tokens"
        )

    def cache_changes(self) -> CacheChanges | None:
        """See `contract.Engine`."""
        return self._kv_events.changes()

    async def shutdown(self) -> None:
        """See `contract.Engine`."""
        self._die("it has been shut down")
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._kv_events.stop()
        starting, self._starting = self._starting, None
        if starting is None:
            return
        while not starting.done():
            # The thread that starts the engine cannot be stopped, but the processes that it waits for can.
            await asyncio.to_thread(kill_engine_cores, self._others)
            await asyncio.wait({starting}, timeout=0.5)
        if not starting.cancelled() and starting.exception() is None:
            started = starting.result()
            await asyncio.to_thread(stop_engine, started)
            # vLLM closes the sockets but not their context.
            started.llm.engine_core.resources.ctx.destroy(linger=0)
        self._close_reports()

    def _close_reports(self) -> None:
        self._gang.close()
        self._kv_events.close()
        if self._reports is not None:
            self._reports.close()

    def _take_report(self, report: ProcessReport) -> None:
        if self._reports is not None:
            self._reports.take(report)

    # ---- attempts ----------------------------------------------------------------------------------------------------

    async def run(self, attempt: AttemptRequest) -> None:
        """See `contract.Engine`."""
        live = self._must_live()
        request = engine_request(attempt, live.max_model_len, live.decoder, live.image_decoder)
        if len(attempt.emitted_token_ids) >= attempt.spec.max_tokens:
            self._sink([TokenDelta(attempt.attempt_id, len(attempt.emitted_token_ids), [], finish_reason=LENGTH)])
            return
        running = self._admit(attempt)
        try:
            await add_request(live.llm, request)
            await running.ended
        except asyncio.CancelledError:
            await self.abort(attempt.attempt_id)
            raise
        except EngineDead:
            raise
        except Exception as error:  # an engine that has just died: an error of vLLM, zmq or asyncio
            self._must_live()
            raise AttemptRefused(f"{type(error).__name__}: {error}") from error
        finally:
            self._forget(attempt.attempt_id)

    async def abort(self, attempt_id: str) -> None:
        """See `contract.Engine`."""
        running = self._forget(attempt_id)
        if running is None or self._live is None:
            return
        if not running.ended.done():
            running.ended.set_result(None)
        await self._live.llm.abort(attempt_id, internal=True)

    def fail(self, reason: str) -> None:
        """See `contract.Engine`."""
        self._die(reason)
        # Its processes may be stopped, or blocked in a driver, and would not react. They must not wake up later.
        kill_engine_cores(self._others, wait_s=0.0)
        self._gang.close()

    def stats(self) -> EngineStats:
        """See `contract.Engine`."""
        # An idle engine, or an idle rank, does not report that it is idle.
        ranks = list(self._schedulers.values()) if self._attempts else []
        running = min(sum(rank.num_running_reqs for rank in ranks), len(self._attempts))
        return EngineStats(
            running=running,
            unfinished=len(self._attempts),
            kv_usage_ratio=sum(rank.kv_cache_usage for rank in ranks) / self._ranks if ranks else 0.0,
            steps=self._steps,
            acceptance_ratio=self._acceptance.value,
            compilations=self._reports.compilations if self._reports is not None else 0,
        )

    def _admit(self, attempt: AttemptRequest) -> _Running:
        if attempt.attempt_id in self._attempts:
            raise AttemptRefused(f"attempt {attempt.attempt_id} is already running")
        emitted, prompt = len(attempt.emitted_token_ids), attempt.spec.prompt_tokens
        ended = asyncio.get_running_loop().create_future()
        running = _Running(attempt.attempt_id, position=emitted, prompt_tokens=prompt + emitted, ended=ended)
        self._attempts[attempt.attempt_id] = running
        self._queued_prompt_tokens += running.prompt_tokens
        return running

    def _forget(self, attempt_id: str) -> _Running | None:
        running = self._attempts.pop(attempt_id, None)
        if running is not None and not running.has_token:
            self._queued_prompt_tokens -= running.prompt_tokens
        return running

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _lose(self, live: _Live, error: Exception) -> None:
        if self._dead is not None:
            return  # it is being shut down
        logger.error("the engine failed", exc_info=error)
        dead = live.llm.engine_core.resources.engine_dead
        self._die(how_cores_ended(self._cores) if dead else f"{type(error).__name__}: {error}")

    def _take_step(self, live: _Live, outputs: EngineCoreOutputs) -> None:
        self._steps += 1
        if outputs.scheduler_stats is not None:
            self._schedulers[outputs.engine_index] = outputs.scheduler_stats
            if (drafts := outputs.scheduler_stats.spec_decoding_stats) is not None:
                self._acceptance.add(drafts.num_accepted_tokens, drafts.num_draft_tokens)
        ended = []
        deltas = []
        for output in outputs.outputs:
            running = self._attempts.get(output.request_id)
            if running is None:
                continue  # of an attempt that was aborted
            deltas.append(token_delta(output, running.attempt_id, running.position, live.encoder, outputs.timestamp))
            running.position += len(output.new_token_ids)
            if not running.has_token:
                running.has_token = True
                self._queued_prompt_tokens -= running.prompt_tokens
            if output.finish_reason is not None:
                ended.append(running)
        if deltas:
            self._sink(deltas)
        for running in ended:
            if not running.ended.done():
                running.ended.set_result(None)

    def _die(self, reason: str) -> None:
        if self._dead is None:
            cause = self._reports.error if self._reports is not None else None
            self._dead = f"{reason} ({cause})" if cause else reason
        for running in self._attempts.values():
            if not running.ended.done():
                running.ended.set_exception(EngineDead(self._dead))

    async def _log(self, live: _Live) -> None:
        while True:
            await asyncio.sleep(LOG_PERIOD_S)
            await live.llm.do_log_stats()
