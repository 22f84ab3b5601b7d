"""Reads a checkpoint's files into the node's page cache, beside the imports that a start begins with.

An engine loads weights only when vLLM is imported and its workers are up, half a minute and more; until then the disk
would have nothing to do. vLLM can do the same (`safetensors-load-strategy: prefetch`), but from there on.

One reader for each node and checkpoint, whatever the number of replicas: a file lock. Nothing is read that would not
fit into what memory is left, and nothing for loaders that do not use the page cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from serve_app.config.schema import AppConfig, flag

logger = logging.getLogger(__name__)

THREADS = 4
"""Files that are read at a time: enough for a local disk or a mount; more would take the disk from the loader."""

BLOCK_BYTES = 8 << 20

MEMORY_SHARE = 0.8
"""Of the memory that is available, which includes what the page cache would give up."""

FRESH_S = 1800.0
"""A node that has been read for so lately is not asked again by a replica on another node."""

PATTERNS: Final = ("*.safetensors", "*.bin", "*.pt")
"""Files with weights, the first kind that there is: as vLLM prefers them."""

CACHED_FORMATS: Final = frozenset({"auto", "safetensors", "pt", "hf", "npcache", "mistral", "sharded_state"})
"""vLLM's `load-format`s that read through the page cache."""


@dataclass(frozen=True)
class Checkpoint:
    """What is to be read: a folder or a Hugging Face id with its `revision`, in the cache `download_dir` (None: the
    usual one)."""

    source: str
    revision: str | None = None
    download_dir: str | None = None


@dataclass(frozen=True)
class Prefetched:
    """How it went. `skipped` says why nothing was read; empty: `size_bytes` were, in `seconds`."""

    files: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    skipped: str = ""


def wanted(config: AppConfig) -> Checkpoint | None:
    """What an engine of this configuration would load through the page cache, if it may be read before."""
    engine = config.engine
    if engine.kind != "vllm" or not engine.prefetch_weights:
        return None
    if str(flag(engine.flags, "load-format", "auto")) not in CACHED_FORMATS:
        return None
    download_dir = flag(engine.flags, "download-dir")
    return Checkpoint(
        config.model.source, config.model.revision, str(download_dir) if download_dir is not None else None
    )


def begin(checkpoint: Checkpoint) -> threading.Thread:
    """Read it in a thread, which ends with the process; the result is logged."""
    thread = threading.Thread(target=_log, args=(checkpoint,), name="weights-prefetch", daemon=True)
    thread.start()
    return thread


def prefetch(checkpoint: Checkpoint, *, unless_fresh: bool = False) -> Prefetched:
    """Read it now. Blocks for as long as the disk takes. With `unless_fresh`, not if this node has read it lately."""
    files = weight_files(checkpoint)
    if not files:
        return Prefetched(skipped="no weights on this node")
    size_bytes = sum(file.stat().st_size for file in files)
    if size_bytes > MEMORY_SHARE * psutil.virtual_memory().available:
        return Prefetched(skipped=f"{size_bytes / 2**30:.0f} GiB do not fit into the memory that is left")
    with _alone(checkpoint) as mark:
        if mark is None:
            return Prefetched(skipped="another replica of this node reads it")
        if unless_fresh and time.time() - os.fstat(mark).st_mtime < FRESH_S and os.fstat(mark).st_size:
            return Prefetched(skipped="it has been read lately")
        begun_s = time.monotonic()
        with ThreadPoolExecutor(THREADS, "weights-prefetch") as threads:
            read_bytes = sum(threads.map(_read, files))
        os.ftruncate(mark, 0)
        os.pwrite(mark, b"1", 0)  # its time says when
        return Prefetched(len(files), read_bytes, time.monotonic() - begun_s)


def weight_files(checkpoint: Checkpoint) -> Sequence[Path]:
    """Its files on this node, a folder's or those of the Hugging Face cache; none where it is not here."""
    folder = Path(checkpoint.source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        revision, cache_dir = checkpoint.revision, checkpoint.download_dir
        try:
            folder = Path(
                snapshot_download(checkpoint.source, revision=revision, cache_dir=cache_dir, local_files_only=True)
            )
        except (LocalEntryNotFoundError, HFValidationError):
            return []
    for pattern in PATTERNS:
        if files := sorted(file for file in folder.glob(pattern) if file.is_file()):
            return files
    return []


def _read(file: Path) -> int:
    buffer, size_bytes = bytearray(BLOCK_BYTES), 0
    with contextlib.suppress(OSError), file.open("rb", buffering=0) as data:
        while count := data.readinto(buffer):
            size_bytes += count
    return size_bytes


@contextlib.contextmanager
def _alone(checkpoint: Checkpoint) -> Iterator[int | None]:
    """The lock of this node for this checkpoint, as an open file; None while somebody else has it."""
    digest = hashlib.sha256(f"{checkpoint.source}\0{checkpoint.revision}".encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"step-serve-weights-{os.getuid()}-{digest}"
    mark = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield mark
    finally:
        os.close(mark)


def _log(checkpoint: Checkpoint) -> None:
    try:
        found = prefetch(checkpoint)
    except OSError as error:
        logger.warning("weights are not read ahead", extra={"error": str(error)})
        return
    if found.skipped:
        logger.info("weights are not read ahead", extra={"reason": found.skipped})
    else:
        facts = {"files": found.files, "gib": round(found.size_bytes / 2**30, 2), "seconds": round(found.seconds, 1)}
        logger.info("weights are in the page cache", extra=facts)
