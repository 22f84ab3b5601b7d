"""A question about past requests to all ingresses: each reads its records once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from serve_app.ingress.peers import AllIngresses
from serve_app.observability.records import RecordQuery, RecordStore, RequestRecord, decode_query


def record(request_id: str, ingress_id: str) -> RequestRecord:
    return RequestRecord(request_id, ingress_id, 1.0, 2.0, "/v1/chat/completions", 200, "ok", [])


class CountingStore(RecordStore):
    """Counts how often it is looked through."""

    searches = 0

    def find(self, query: RecordQuery) -> list[RequestRecord]:
        self.searches += 1
        return super().find(query)


def ingress(ingress_id: str) -> AllIngresses:
    store = CountingStore()
    store.add(record(f"of-{ingress_id}", ingress_id))
    return Local(store, ingress_id)


@dataclass
class Fleet:
    """Every ingress, and the questions that went around."""

    ingresses: list[AllIngresses] = field(default_factory=list)
    asked: list[bytes] = field(default_factory=list)


class Local(AllIngresses):
    """Ingresses in one process."""

    fleet: Fleet

    def __init__(self, own: RecordStore, ingress_id: str) -> None:
        super().__init__(self.nobody, own, ingress_id)

    @staticmethod
    def nobody() -> Any:
        raise AssertionError("no deployment is asked")

    async def ask(self, method: str, query: bytes) -> list[Any] | None:
        assert method == "find_records"
        self.fleet.asked.append(query)
        return [one.answer(query) for one in self.fleet.ingresses]


async def test_each_ingress_reads_its_records_once() -> None:
    fleet = Fleet([ingress("a"), ingress("b")])
    for one in fleet.ingresses:
        assert isinstance(one, Local)
        one.fleet = fleet
    found = await fleet.ingresses[0].find(RecordQuery())
    assert {one.request_id for one in found.records} == {"of-a", "of-b"}
    assert [one.own.searches for one in fleet.ingresses] == [1, 1]  # type: ignore[attr-defined]
    assert decode_query(fleet.asked[0]).asked_by == "a"


def test_an_older_ingress_does_not_say_who_asks() -> None:
    query = msgspec.msgpack.encode({"limit": 5})
    answer = msgspec.msgpack.decode(ingress("a").answer(query), type=list[RequestRecord])
    assert [one.request_id for one in answer] == ["of-a"]
