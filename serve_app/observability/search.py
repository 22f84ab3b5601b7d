"""A question about past requests, to all ingresses: the interface, and how an answer is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from serve_app.observability.explain import sentence
from serve_app.observability.records import RecordQuery, RecordStore, RequestRecord


@dataclass(frozen=True)
class Found:
    """Records, as `RecordQuery.best` orders them. `silent_ingresses` did not answer in time: theirs may be missing."""

    records: Sequence[RequestRecord]
    silent_ingresses: int = 0


class RecordSearch(Protocol):
    """Where the records of all ingresses are found."""

    async def find(self, query: RecordQuery) -> Found:
        """The records that are wanted."""


@dataclass(frozen=True)
class OneStore:
    """The search of a service with one ingress."""

    store: RecordStore

    async def find(self, query: RecordQuery) -> Found:
        """See `RecordSearch`."""
        return Found(self.store.find(query))


class ExplainedRecord(msgspec.Struct, frozen=True):
    """A record and what it says in words (`explain.sentence`)."""

    sentence: str
    record: RequestRecord


class Answer(msgspec.Struct, frozen=True):
    """The answer of `GET /status/requests`."""

    requests: list[ExplainedRecord]
    silent_ingresses: int = 0


def encode_answer(found: Found) -> bytes:
    """`Answer` as JSON."""
    explained = [ExplainedRecord(sentence(record), record) for record in found.records]
    return msgspec.json.encode(Answer(explained, found.silent_ingresses))


def decode_answer(data: bytes) -> Answer:
    """The answer in `data`. Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(data, type=Answer)
