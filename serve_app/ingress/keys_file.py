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

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""A look is one `stat`."""

Stamp = tuple[int, int, int] | None


class KeysFile:
    """The keys of a file. Enter it to follow the file. Raises `BadKeysFile` where there is nothing to begin with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stat()
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

    def limits(self) -> Mapping[str, KeyLimits]:
        """See `KeyStore`. Another object after each change."""
        return self._store.limits()

    def look(self) -> None:
        """Read the file if it is not the one that was read last."""
        stamp = self._stat()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._store = KeyStore.load(self._path)
        except BadKeysFile as error:
            logger.error("keys file refused, the last one stays", extra={"problem": str(error)})
            return
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
