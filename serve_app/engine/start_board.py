"""Where a replica that is starting says how far it is, for the status page: Ray's key-value store in the GCS.

It cannot be called before its constructor has returned, and Serve knows only that it is `STARTING`. A key for each
replica that starts, gone when it is ready; those that a killed one has left are removed by the next start.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psutil
from ray.exceptions import RayError
from ray.experimental import internal_kv

logger = logging.getLogger(__name__)

NAMESPACE = b"step_serve_starts"

LEFT_S = 24 * 3600.0
"""A note that is older was left by a replica that is gone."""

FAILED = (RayError, RuntimeError, OSError, ValueError, AssertionError)
"""What the store raises when the GCS is away, or this process is not connected."""


class Note(msgspec.Struct, array_like=True):
    """What a replica says: the phase in words, said at `at_unix_s`."""

    phase: str
    at_unix_s: float


class StartBoard:
    """`StartWatch` that writes to the board, in a thread of its own: the GCS may be away."""

    def __init__(self, replica_id: str) -> None:
        self.process_s = max(time.time() - psutil.Process().create_time(), 0.0)
        self._key = replica_id.encode()
        self._thread = ThreadPoolExecutor(1, "start-board")
        self._thread.submit(_remove_left)

    def say(self, phase: str) -> None:
        """See `StartWatch`."""
        note = msgspec.msgpack.encode(Note(phase, time.time()))
        with contextlib.suppress(RuntimeError):  # it is over
            self._thread.submit(_put, self._key, note)

    def ready(self) -> None:
        """See `StartWatch`."""
        with contextlib.suppress(RuntimeError):
            self._thread.submit(_remove, self._key)
        self._thread.shutdown(wait=False)


def read(replica_ids: Sequence[str]) -> Mapping[str, str]:
    """What these replicas say of their start, by id; those that say nothing are left out. Blocks for milliseconds."""
    said: dict[str, str] = {}
    for replica_id in replica_ids:
        if (note := _get(replica_id.encode())) is not None:
            said[replica_id] = note.phase
    return said


def _get(key: bytes) -> Note | None:
    try:
        data = internal_kv._internal_kv_get(key, namespace=NAMESPACE)  # noqa: SLF001  # Ray has no public one
        return msgspec.msgpack.decode(data, type=Note) if data else None
    except (*FAILED, msgspec.DecodeError):
        return None


def _put(key: bytes, data: bytes) -> None:
    try:
        internal_kv._internal_kv_put(key, data, namespace=NAMESPACE)  # noqa: SLF001  # see above
    except FAILED as error:
        logger.warning("the status page is not told of the start", extra={"error": str(error)})


def _remove(key: bytes) -> None:
    with contextlib.suppress(*FAILED):
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)  # noqa: SLF001  # see above


def _remove_left() -> None:
    with contextlib.suppress(*FAILED):
        for key in internal_kv._internal_kv_list(b"", namespace=NAMESPACE):  # noqa: SLF001  # see above
            note = _get(key)
            if note is None or time.time() - note.at_unix_s > LEFT_S:
                _remove(key)
