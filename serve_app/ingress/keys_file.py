"""The keys file, read again when it changes, so that a key or a limit takes effect without a restart.

A file that cannot be used changes nothing: the last good one stays, and the log says what is wrong with the new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from serve_app.ingress.auth import BadKeysFile, KeyLimits, KeyStore
from serve_app.protocol.service_class import Share

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""A look is one `stat`."""

Stamp = tuple[int, int, int] | None


class KeysFile:
    """The keys of a file. Enter it to follow the file. Raises `BadKeysFile` where there is nothing to begin with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stat()
        self._refused: tuple[Stamp, str] | None = None
        """The file that was refused last, and why: it is logged once."""
        self._store = KeyStore.load(path)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow(), name="keys file")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def name_of(self, presented: str) -> str | None:
        """See `KeyStore`."""
        return self._store.name_of(presented)

    def share_of(self, name: str) -> Share:
        """See `KeyStore`."""
        return self._store.share_of(name)

    def limits(self) -> Mapping[str, KeyLimits]:
        """See `KeyStore`. Another object after each change."""
        return self._store.limits()

    def look(self) -> None:
        """Read the file if it is not the one that was loaded last. One that could not be is tried again: it may have
        been half written, or the disk away."""
        stamp = self._stat()
        if stamp == self._stamp:
            return
        try:
            store = KeyStore.load(self._path)
        except BadKeysFile as error:
            if self._refused != (stamp, str(error)):
                logger.error("keys file refused, the last one stays", extra={"problem": str(error)})
            self._refused = stamp, str(error)
            return
        self._store, self._stamp, self._refused = store, stamp, None
        logger.info("keys file read again", extra={"file": str(self._path), "keys": len(self._store)})

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.to_thread(self.look)  # the file may be on a network

    def _stat(self) -> Stamp:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
