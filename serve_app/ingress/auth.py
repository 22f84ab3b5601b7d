"""Authentication: names and hashed API keys, from a file of lines `name sha256:<64 hex digits> [settings]`.

The settings of a key are words after its hash, each of which may be left out: its limits, `requests_per_minute=600
tokens_per_minute=2000000 max_concurrent=32` (`ingress/rate_limits/`), and its share of the engines, `class=interactive
weight=4` (`engine/fair_queue.py`). `#` begins a comment.

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

from serve_app.protocol.service_class import DEFAULT_SHARE, ServiceClass, Share

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
"""Of each limit in a line: more is a mistake."""

MAX_WEIGHT = 1000
"""A key of weight 1 beside one of more would get next to nothing."""

CLASSES = {one.word: one for one in ServiceClass}


@dataclass(frozen=True)
class KeyStore:
    """The valid keys. Digests stay out of `repr`, which ends up in logs."""

    _digests: tuple[tuple[str, bytes], ...] = field(repr=False)
    _limits: Mapping[str, KeyLimits] = field(default_factory=dict)
    _shares: Mapping[str, Share] = field(default_factory=dict)

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
        shares: dict[str, Share] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            name, digest = _entry(words[:2], f"{path}:{number}")
            limits[name], shares[name] = _settings(words[2:], f"{path}:{number}")
            if name in seen:
                raise BadKeysFile(f"{path}:{number}: the name {name!r} is already on line {seen[name]}")
            seen[name] = number
            digests.append((name, digest))
        if not digests:
            raise BadKeysFile(f"{path}: holds no key; make one with `python -m serve_app hash-key <name>`")
        return cls(tuple(digests), {name: one for name, one in limits.items() if one != NO_LIMITS}, shares)

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

    def share_of(self, name: str) -> Share:
        """The class and weight of an owner's key."""
        return self._shares.get(name, DEFAULT_SHARE)

    def __len__(self) -> int:
        return len(self._digests)


def _entry(words: list[str], where: str) -> tuple[str, bytes]:
    form = (
        "expected `name sha256:<64 hex digits>` and settings (`python -m serve_app hash-key <name>` prints such a line)"
    )
    if len(words) != 2 or not (digest := _HASH.fullmatch(words[1])):  # a name and a hash
        raise BadKeysFile(f"{where}: {form}")
    if not _NAME.fullmatch(words[0]):
        raise BadKeysFile(f"{where}: a name has letters, digits, `.`, `_` and `-`, at most 64; {form}")
    return words[0], bytes.fromhex(digest.group(1))


def _settings(words: list[str], where: str) -> tuple[KeyLimits, Share]:
    limits = [one.name for one in fields(KeyLimits)]
    form = f"after the hash come settings, `NAME=VALUE`, with names of {', '.join(limits)}, class, weight"
    found: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in (*limits, "class", "weight"):
            raise BadKeysFile(f"{where}: {form}")  # without the word, which may be a key
        if name in found:
            raise BadKeysFile(f"{where}: {name} is there twice")
        found[name] = value
    service_class = CLASSES.get(found.pop("class", DEFAULT_SHARE.service_class.word))
    if service_class is None:
        raise BadKeysFile(f"{where}: class wants one of {', '.join(CLASSES)}")
    weight = _number("weight", found.pop("weight", "1"), MAX_WEIGHT, where)
    numbers = {name: _number(name, value, MAX_LIMIT, where) for name, value in found.items()}
    return KeyLimits(**numbers), Share(service_class, weight)


def _number(name: str, value: str, most: int, where: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 20 and 0 < int(value) <= most):
        raise BadKeysFile(f"{where}: {name} wants a whole number from 1 to {most}")
    return int(value)


def new_key() -> str:
    """A fresh key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def line_for(name: str, key: str, limits: KeyLimits = NO_LIMITS, share: Share = DEFAULT_SHARE) -> str:
    """The line of the keys file for `key`. Raises `BadKeysFile` for a name that `load` refuses."""
    if not _NAME.fullmatch(name):
        raise BadKeysFile("a name has letters, digits, `.`, `_` and `-`, at most 64")
    words = [name, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"]
    words += [str(limits)] if limits != NO_LIMITS else []
    words += [f"class={share.service_class.word}"] if share.service_class is not DEFAULT_SHARE.service_class else []
    words += [f"weight={share.weight}"] if share.weight != DEFAULT_SHARE.weight else []
    return " ".join(words)
