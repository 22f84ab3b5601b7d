"""What this ingress knows of the fleet, and the answer of `GET /status/fleet` from that and the others' reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from serve_app.config.fleet import is_engine
from serve_app.ingress.autoscaling import BUSY_RATIO, LAG_S
from serve_app.observability import fleet
from serve_app.observability.fleet import CanaryView, Fleet, IngressReport, ReportQuery, ScaleDecision, ServeView
from serve_app.observability.records import RecordQuery, RecordStore, RequestRecord
from serve_app.router.dispatcher import Dispatcher

logger = logging.getLogger(__name__)

HOUR_S = 3600.0


@dataclass(frozen=True)
class Reports:
    """The reports of all ingresses. `silent_ingresses` did not answer in time."""

    reports: Sequence[IngressReport]
    silent_ingresses: int = 0


class ReportSource(Protocol):
    """Where the reports of the ingresses come from (`peers.py`)."""

    async def reports(self, query: ReportQuery) -> Reports:
        """The reports of all ingresses, this one included."""


class Serve(Protocol):
    """What Serve says of the application (`serve_watch.py`)."""

    async def view(self) -> ServeView:
        """The application now, or some seconds ago."""

    @property
    def decisions(self) -> Sequence[ScaleDecision]:
        """Changes of targets that were noticed, the oldest first."""


class NoServe:
    """`Serve` of a service that does not run on Ray Serve."""

    async def view(self) -> ServeView:
        """See `Serve`."""
        return ServeView()

    @property
    def decisions(self) -> Sequence[ScaleDecision]:
        """See `Serve`."""
        return ()


@dataclass(frozen=True)
class OwnStatus:
    """This ingress' part. `loop_use` gives what `EventLoopSampler.stats` does."""

    ingress_id: str
    node: str
    dispatcher: Dispatcher
    records: RecordStore
    serve: Serve
    loop_use: Callable[[], dict[str, float]]
    started_unix_s: float
    canary: Callable[[], CanaryView | None] = lambda: None
    """The trial of a canary, if there is one."""

    def report(self, query: ReportQuery) -> IngressReport:
        """Its report. It reads what is kept for it and looks through no more than some hundred records, except for one
        key."""
        now_unix_s, use = time.time(), self.loop_use()
        keys = self.records.usage.last_hour(now_unix_s, [query.key] if query.only_key else None)
        migrations, engines = self.dispatcher.migrations, self.dispatcher.fleet()
        if query.only_key:
            migrations = [one for one in migrations if one.key == query.key]
        return IngressReport(
            ingress_id=self.ingress_id,
            node=self.node,
            started_unix_s=self.started_unix_s,
            in_flight=self.dispatcher.in_flight,
            busy_ratio=use.get(BUSY_RATIO),
            lag_s=use.get(LAG_S),
            migrations=migrations,
            scale=list(self.serve.decisions),
            keys=keys,
            slowest=self._slowest(query, now_unix_s - HOUR_S),
            waiting=engines.waiting,
            asked_s_ago=engines.elapsed_s,
            start_s=engines.start_s,
        )

    def _slowest(self, query: ReportQuery, since_unix_s: float) -> list[RequestRecord]:
        if not query.only_key:
            return self.records.kept_slowest(fleet.SHOWN_REQUESTS, since_unix_s)
        return self.records.find(RecordQuery(slowest=fleet.SHOWN_REQUESTS, key=query.key, since_unix_s=since_unix_s))

    def encoded_report(self, query: bytes) -> bytes:
        """The same for an encoded query, encoded."""
        return msgspec.msgpack.encode(self.report(msgspec.msgpack.decode(query, type=ReportQuery)))

    async def reports(self, query: ReportQuery) -> Reports:
        """See `ReportSource`: those of a service with one ingress."""
        return Reports([self.report(query)])


class FleetStatus:
    """Answers `GET /status/fleet` at one ingress."""

    def __init__(self, own: OwnStatus, source: ReportSource, model: str, engine: str) -> None:
        self._own = own
        self._source = source
        self._model = model
        self._engine = engine

    async def answer(self, query: ReportQuery) -> bytes:
        """`Fleet` as JSON."""
        found = await self._source.reports(query)
        serve = await self._own.serve.view()
        reports, dispatcher = found.reports, self._own.dispatcher
        engines = [one for found in serve.deployments if is_engine(found.name) for one in found.replicas]
        together = fleet.merged_state(dispatcher.fleet(), reports)
        shown = Fleet(
            now_unix_s=time.time(),
            model=self._model,
            engine=self._engine,
            only_key=query.only_key,
            replicas=fleet.replica_views(dispatcher.connections(), dispatcher.refused, engines),
            ingresses=[fleet.without_lists(one) for one in sorted(reports, key=lambda one: one.started_unix_s)],
            deployments=serve.deployments,
            queued=dispatcher.queued(),
            in_flight=sum(one.in_flight for one in reports),
            migrations=fleet.newest(one for report in reports for one in report.migrations),
            scale=fleet.longest_history(reports),
            keys=fleet.merged_usage(reports),
            slowest=fleet.explained(record for report in reports for record in report.slowest),
            silent_ingresses=found.silent_ingresses,
            problem=serve.problem,
            state=together.state,
            state_text=together.sentence(),
            waiting=together.waiting,
            left_s=together.left_s,
            canary=self._own.canary(),
        )
        return msgspec.json.encode(shown)


def decode_report(data: bytes) -> IngressReport:
    """The report in `data`. Raises `msgspec.DecodeError`."""
    return msgspec.msgpack.decode(data, type=IngressReport)


def encode_report_query(query: ReportQuery) -> bytes:
    """The bytes of a query."""
    return msgspec.msgpack.encode(query)
