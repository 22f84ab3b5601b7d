"""Which nodes Ray is draining, and until when. No public interface of Ray says it (2.60): this asks as Serve's own
controller does."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping

import ray
from ray.exceptions import RayError

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""Ray's head may be away; it is asked again a second later."""

ReadNodes = Callable[[], Mapping[str, int]]
"""Ray's draining nodes by id, each with its deadline as a Unix time in milliseconds (0: none). Raises `RayError`."""


class DrainingNodes:
    """`departures.FindDepartures`, from Ray; what it said last, where it does not answer. `clock` gives Unix time."""

    def __init__(self, read: ReadNodes | None = None, clock: Callable[[], float] = time.time) -> None:
        self._read = read
        self._clock = clock
        self._last: Mapping[str, int] = {}
        self._answers = True

    async def __call__(self) -> Mapping[str, float]:
        """The nodes that are being drained, by id, and for how many more seconds they stay."""
        try:
            self._last = await asyncio.to_thread(self._ask)
        except (RayError, AttributeError, ImportError) as error:
            if self._answers:
                logger.warning("Ray does not say which nodes are about to go", extra={"error": str(error)})
            self._answers = False
        else:
            self._answers = True
        now_s = self._clock()
        return {node: deadline / 1000 - now_s if deadline else math.inf for node, deadline in self._last.items()}

    def _ask(self) -> Mapping[str, int]:
        if self._read is None:
            self._read = gcs_reader()
        return self._read()


def gcs_reader() -> ReadNodes:
    """Asks the GCS of the Ray that this process is connected to. Raises `AttributeError` or `ImportError` where this
    Ray cannot say it."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled: mypy finds no names in it

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    ask = client.get_draining_nodes

    def read() -> Mapping[str, int]:
        nodes: Mapping[str, int] = ask(timeout=TIMEOUT_S)
        return nodes

    return read
