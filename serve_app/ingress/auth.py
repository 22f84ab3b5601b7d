"""Authentication: names and hashed API keys, from a file of lines `name sha256:<64 hex digits> [limits]`.

The limits of a key are words after its hash, each of which may be left out: `requests_per_minute=600
tokens_per_minute=2000000 max_concurrent=32` (`ingress/rate_limits/`). `#` begins a comment.

The file holds hashes, so that reading it gives nobody a key. Plain SHA-256 is enough: a key made here has 256 random
bits, so there is no dictionary to try. A key chosen by a person would need a slow hash; make keys with `hash-key`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

PREFIX = "sk-step-"
"""Lets secret scanners recognise a leaked key."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")


class BadKeysFile(ValueError):
    """The keys file cannot be used. The message names file and line, and never quotes what may be a key."""


@dataclass(frozen=True)
class KeyLimits:
    """What the requests of one key may use, at all ingresses together. None: as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Tokens of prompts and of answers."""
    max_concurrent: int | None = None
    """Requests at a time."""

    def __str__(self) -> str:
        """The words of a line of the keys file."""
        set_here = ((one.name, getattr(self, one.name)) for one in fields(self))
        return " ".join(f"{name}={limit}" for name, limit in set_here if limit is not None)


NO_LIMITS = KeyLimits()

MAX_LIMIT = 10**12
"""Of each number in a line: more is a mistake."""


@dataclass(frozen=True)
class KeyStore:
    """The valid keys. Digests stay out of `repr`, which ends up in logs."""

    _digests: tuple[tuple[str, bytes], ...] = field(repr=False)
    _limits: Mapping[str, KeyLimits] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> KeyStore:
        """Read a keys file. Raises `BadKeysFile`, also for a file without any key: it would shut all clients out."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise BadKeysFile(f"{path}: cannot be read ({reason})") from error
        seen: dict[str, int] = {}
        digests: list[tuple[str, bytes]] = []
        limits: dict[str, KeyLimits] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            name, digest = _entry(words[:2], f"{path}:{number}")
            limits[name] = _limits(words[2:], f"{path}:{number}")
            if name in seen:
                raise BadKeysFile(f"{path}:{number}: the name {name!r} is already on line {seen[name]}")
            seen[name] = number
            digests.append((name, digest))
        if not digests:
            raise BadKeysFile(f"{path}: holds no key; make one with `python -m serve_app hash-key <name>`")
        return cls(tuple(digests), {name: one for name, one in limits.items() if one != NO_LIMITS})

    def name_of(self, presented: str) -> str | None:
        """The name of the key's owner, or None. Takes the same time whichever entry matches, or none."""
        digest = hashlib.sha256(presented.encode()).digest()
        found: str | None = None
        for name, known in self._digests:
            # No early end: the time taken would tell where in the file a match is.
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def limits(self) -> Mapping[str, KeyLimits]:
        """The limits of the keys that have some, by name."""
        return self._limits

    def __len__(self) -> int:
        return len(self._digests)


def _entry(words: list[str], where: str) -> tuple[str, bytes]:
    form = (
        "expected `name sha256:<64 hex digits>` and limits (`python -m serve_app hash-key <name>` prints such a line)"
    )
    if len(words) != 2 or not (digest := _HASH.fullmatch(words[1])):  # a name and a hash
        raise BadKeysFile(f"{where}: {form}")
    if not _NAME.fullmatch(words[0]):
        raise BadKeysFile(f"{where}: a name has letters, digits, `.`, `_` and `-`, at most 64; {form}")
    return words[0], bytes.fromhex(digest.group(1))


def _limits(words: list[str], where: str) -> KeyLimits:
    names = [one.name for one in fields(KeyLimits)]
    form = f"after the hash come limits, `NAME=NUMBER`, with names of {', '.join(names)}"
    found: dict[str, int] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in names:
            raise BadKeysFile(f"{where}: {form}")  # without the word, which may be a key
        if name in found:
            raise BadKeysFile(f"{where}: {name} is there twice")
        if not (number.isascii() and number.isdecimal() and len(number) < 20 and 0 < int(number) <= MAX_LIMIT):
            raise BadKeysFile(f"{where}: {name} wants a whole number from 1 to {MAX_LIMIT}")
        found[name] = int(number)
    return KeyLimits(**found)


def new_key() -> str:
    """A fresh key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def line_for(name: str, key: str, limits: KeyLimits = NO_LIMITS) -> str:
    """The line of the keys file for `key`. Raises `BadKeysFile` for a name that `load` refuses."""
    if not _NAME.fullmatch(name):
        raise BadKeysFile("a name has letters, digits, `.`, `_` and `-`, at most 64")
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()} {limits}".rstrip()
