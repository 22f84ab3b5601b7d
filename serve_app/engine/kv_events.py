"""vLLM's reports of its prefix cache: an engine core publishes what it stores and removes, and this process follows.

The reports are vLLM's KV events, on ZMQ sockets in a folder that only this user can read: they have the tokens of
prompts. Each batch has a number. Batches that were missed are asked for once more; where the core has them no longer,
the pages count as forgotten, and are known again when they are next computed.

A hybrid model has several groups of layers, with blocks of their own. Only those of full attention are followed, of one
group: a sliding window's are given up while a request goes on. So a page says what could be found. vLLM finds a prefix
only where it has the sliding window before its end, too, which it keeps at the ends of prompts and, with
`--prefix-cache-retention-interval`, between them.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import zmq
import zmq.asyncio

from serve_app.engine.cached_pages import CachedPages
from serve_app.protocol.messages import CacheChanges
from serve_app.protocol.pages import PAGE_TOKENS

if TYPE_CHECKING:  # importing vLLM takes seconds; `python -m serve_app.vllm_patches.vllm_api_check` reads these
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVEventBatch

logger = logging.getLogger(__name__)

KEPT_BATCHES = 500
"""How many batches the core keeps for us on each of its sockets. One has the tokens of its step, once for each group of
layers: 100 kB or more while prompts are computed, so this is 50 MB at worst. We are that late only when this process
has stood still for many seconds."""

FULL_ATTENTION = ("full_attention", "mla_attention", "sink_full_attention")
"""vLLM's names of the groups whose blocks stay until they are evicted."""

END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)

ON_DEVICE = "GPU"
"""Where the blocks are that requests hit without loading: vLLM says so of a CPU's memory too, if it runs there."""


class BatchSequence:
    """Puts batches in the order of their numbers. `apply` gets each once, `lose` is called before a batch where some
    are missing for good, `ask` for all from a number on."""

    def __init__(self, apply: Callable[[bytes], None], lose: Callable[[], None], ask: Callable[[int], object]) -> None:
        self._apply = apply
        self._lose = lose
        self._ask = ask
        self._next = 0
        self._early: dict[int, bytes] = {}
        """Batches that came while older ones are asked for."""

    def published(self, number: int, batch: bytes) -> None:
        """The core has published this batch."""
        if not self._early and number == self._next:
            self._take(number, batch)
        elif number >= self._next:
            asked = bool(self._early)
            self._early[number] = batch
            if not asked:
                self._ask(self._next)
            elif len(self._early) > KEPT_BATCHES:
                self.replayed_all()  # no answer comes

    def replayed(self, number: int, batch: bytes) -> None:
        """One of the batches that were asked for."""
        self._take(number, batch)

    def replayed_all(self) -> None:
        """No more of those come."""
        early, self._early = self._early, {}
        for number, batch in sorted(early.items()):
            self._take(number, batch)

    def _take(self, number: int, batch: bytes) -> None:
        if number < self._next:
            return
        if number > self._next:
            self._lose()
        self._next = number + 1
        self._apply(batch)


class KvEvents:
    """Follows the prefix cache of one engine. `configure`, then `follow`, once its core runs; `close` in any case."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pages: CachedPages | None = None
        self._group: int | None = None
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def active(self) -> bool:
        """Whether `changes` says what the cache holds."""
        return self._pages is not None

    def configure(self, vllm_config: VllmConfig) -> None:
        """Have the engine of this configuration report, where it has one core and caches prefixes. Reports that the
        operator has configured stay as they are: their reader is elsewhere."""
        from vllm.config.kv_events import KVEventsConfig

        cache = vllm_config.cache_config
        if not cache.enable_prefix_caching or vllm_config.parallel_config.data_parallel_size > 1:
            return
        if vllm_config.kv_events_config is not None:
            return
        folder = self._folder = tempfile.TemporaryDirectory(prefix="step-serve-")
        vllm_config.kv_events_config = KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=_endpoint(folder.name, "events"),
            replay_endpoint=_endpoint(folder.name, "replay"),
            buffer_steps=KEPT_BATCHES,
            hwm=KEPT_BATCHES,
        )

    def follow(self, vllm_config: VllmConfig) -> None:
        """Read what the core, which has started, reports from its first batch on."""
        from vllm.distributed.kv_events import KVEventBatch

        if self._folder is None:
            return
        cache = vllm_config.cache_config
        block_tokens = cache.effective_attention_block_size or cache.block_size
        if PAGE_TOKENS % block_tokens:
            logger.warning("the prefix cache is not followed: its blocks have %d tokens", block_tokens)
            return
        self._pages = CachedPages(block_tokens, max_blocks=cache.num_gpu_blocks)
        decoder = msgspec.msgpack.Decoder(KVEventBatch)
        context = self._context = zmq.asyncio.Context()
        events, replay = context.socket(zmq.SUB), context.socket(zmq.DEALER)
        for one in (events, replay):
            one.setsockopt(zmq.RCVHWM, 2 * KEPT_BATCHES)
        events.subscribe(b"")
        events.connect(_endpoint(self._folder.name, "events"))
        replay.connect(_endpoint(self._folder.name, "replay"))
        sequence = BatchSequence(
            apply=lambda batch: self._take(decoder, batch),
            lose=self._lose,
            ask=lambda number: replay.send_multipart([b"", number.to_bytes(8, "big")]),
        )
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(_read(events, _published(sequence), self._lose), name="kv-events"),
            loop.create_task(_read(replay, _replayed(sequence), self._lose), name="kv-events-replay"),
        ]

        for task in self._tasks:
            task.add_done_callback(self._reader_ended)

    def _reader_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the prefix cache is not followed any more", exc_info=error)
            self._lose()

    def changes(self) -> CacheChanges | None:
        """See `contract.Engine.cache_changes`."""
        return self._pages.log.take() if self._pages is not None else None

    async def stop(self) -> None:
        """Read no more."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(linger=0)

    def close(self) -> None:
        """Remove the folder. May be called twice."""
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def _lose(self) -> None:
        logger.warning("reports of the prefix cache were missed; what it holds counts as forgotten")
        if self._pages is not None:
            self._pages.reset()

    def _take(self, decoder: msgspec.msgpack.Decoder[KVEventBatch], data: bytes) -> None:
        from vllm.distributed.kv_events import BlockRemoved, BlockStored

        try:
            batch = decoder.decode(data)
        except msgspec.MsgspecError as error:
            logger.error("a report of the prefix cache cannot be read: %s", error)
            self._lose()
            return
        for event in batch.events:
            if isinstance(event, BlockStored):
                self._store(event)
            elif isinstance(event, BlockRemoved):
                self._remove(event)
            elif self._pages is not None:
                self._pages.reset()

    def _store(self, event: BlockStored) -> None:
        if event.medium != ON_DEVICE or event.kv_cache_spec_kind not in FULL_ATTENTION or event.lora_name:
            return
        if self._group is None:
            self._group = event.group_idx
        blocks, token_ids = event.block_hashes, event.token_ids
        if event.group_idx != self._group or len(token_ids) != len(blocks) * event.block_size:
            return
        if self._pages is not None and event.block_size == self._pages.block_tokens:
            keys = [page_keys(one, event.block_size) for one in event.extra_keys or [None] * len(blocks)]
            self._pages.store(event.parent_block_hash, blocks, token_ids, keys)

    def _remove(self, event: BlockRemoved) -> None:
        if event.medium == ON_DEVICE and event.group_idx == self._group and self._pages is not None:
            for block in event.block_hashes:
                self._pages.remove(block)


def page_keys(extra_keys: Any, block_tokens: int) -> list[str]:
    """What vLLM's extra keys of a block add to the hash of its page: the cache salt, then the images that reach into
    the block. An image is its name and where it begins, from the block's start; vLLM may name one of the next block,
    too, where the hash of a block looks at the tokens that follow."""
    keys = extra_keys or ()
    images = [key for key in keys if isinstance(key, list | tuple)]
    others = [str(key) for key in keys if not isinstance(key, list | tuple)]
    return others + [str(name) for name, start in images if start < block_tokens]


def _endpoint(folder: str, name: str) -> str:
    return f"ipc://{folder}/{name}"


async def _read(socket: Any, take: Callable[..., None], lose: Callable[[], None]) -> None:
    """Pass on the parts of each message. If one fails, it is logged and what the cache holds counts as forgotten.
    Without a reader the pages would stay as they are, and routing would go by them."""
    while True:
        parts = await socket.recv_multipart()
        try:
            take(*parts)
        except Exception:  # whatever it is, the next messages must be read
            logger.exception("a report of the prefix cache failed")
            lose()


def _published(sequence: BatchSequence) -> Callable[[bytes, bytes, bytes], None]:
    return lambda _topic, number, batch: sequence.published(int.from_bytes(number, "big"), batch)


def _replayed(sequence: BatchSequence) -> Callable[[bytes, bytes, bytes, bytes], None]:
    def take(_identity: bytes, _empty: bytes, number: bytes, batch: bytes) -> None:
        if number == END_OF_REPLAY:
            sequence.replayed_all()
        else:
            sequence.replayed(int.from_bytes(number, "big"), batch)

    return take
