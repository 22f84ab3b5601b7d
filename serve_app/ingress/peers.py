"""Asks all ingress replicas of the application, this one included, and wires the status page that shows their
answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import ray.util
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import vllm_device
from serve_app.config.fleet import FleetPart
from serve_app.config.schema import AppConfig
from serve_app.ingress import page_routes
from serve_app.ingress.autoscaling import BUSY_RATIO
from serve_app.ingress.canary.follower import CanaryFollower
from serve_app.ingress.event_loop import EventLoopSampler
from serve_app.ingress.fleet_status import (
    FleetStatus,
    OwnStatus,
    Reports,
    decode_report,
    encode_report_query,
)
from serve_app.ingress.serve_watch import Load, ServeWatch
from serve_app.observability.fleet import Deployment, IngressReport, ReportQuery, failed_starts
from serve_app.observability.records import (
    RecordQuery,
    RecordStore,
    decode_query,
    decode_records,
    encode_query,
    encode_records,
)
from serve_app.observability.search import Found
from serve_app.protocol.errors import RequestRefused
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.serve_transport import CALL_FAILED, ask_all
from serve_app.scaling.journal import ScaleChange, ScaleJournal

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 0.8
"""An ingress that does not answer in this time is left out: whoever asks wants to know within a second."""


MAX_ASKED = 8
ASKED_S = 0.5
"""So many questions in so long: one may cost each ingress ten milliseconds in which it hands no token on."""


class AllIngresses:
    """`RecordSearch` over a handle to the ingress deployment, which exists once the application runs."""

    def __init__(self, ingresses: Callable[[], DeploymentHandle[Any]], own: RecordStore, ingress_id: str) -> None:
        self._ingresses = ingresses
        self._ingress_id = ingress_id
        self.own = own
        self._handle: DeploymentHandle[Any] | None = None
        self._asked = 0

    async def find(self, query: RecordQuery) -> Found:
        """See `RecordSearch`."""
        asked = msgspec.structs.replace(query, asked_by=self._ingress_id)
        answers = await self.ask("find_records", encode_query(asked))
        if answers is None:
            return Found(self.own.find(query), silent_ingresses=1)
        records = self.own.find(query)
        silent = 0
        for answer in answers:
            try:
                records += decode_records(answer)
            except (msgspec.DecodeError, TypeError):  # an error in place of an answer, or another version's
                silent += 1
        return Found(query.best(records), silent)

    def answer(self, query: bytes) -> bytes:
        """This ingress' records, for any ingress that asks. Nothing for itself: it has read them already."""
        asked = decode_query(query)
        return encode_records([] if asked.asked_by == self._ingress_id else self.own.find(asked))

    async def ask(self, method: str, query: bytes) -> list[Any] | None:
        """What each ingress answers to a call of this method, an error in its place; None if none can be asked.
        Raises `RequestRefused` (429) when there are too many questions."""
        if self._asked >= MAX_ASKED:
            raise RequestRefused(
                "Too many questions about requests and replicas at a time; ask again in a second.",
                HTTPStatus.TOO_MANY_REQUESTS,
            )
        self._asked += 1
        asyncio.get_running_loop().call_later(ASKED_S, self._may_ask_again)
        if self._handle is None:
            self._handle = self._ingresses()
        try:
            return await ask_all(self._handle, method, query, timeout_s=ANSWER_TIMEOUT_S)
        except (*CALL_FAILED, TimeoutError) as error:
            logger.warning("the other ingresses cannot be asked", extra={"error": str(error)})
            return None

    def _may_ask_again(self) -> None:
        self._asked -= 1


class AllReports:
    """`ReportSource` over all ingresses; `own` is what this one reports."""

    def __init__(self, peers: AllIngresses, own: OwnStatus) -> None:
        self._peers = peers
        self._own = own

    async def reports(self, query: ReportQuery) -> Reports:
        """See `ReportSource`."""
        answers = await self._peers.ask("report_status", encode_report_query(query))
        found: dict[str, IngressReport] = {}
        silent = 1 if answers is None else 0
        for answer in answers or ():
            try:
                report = decode_report(answer)
            except (msgspec.DecodeError, TypeError):
                silent += 1
            else:
                found[report.ingress_id] = report
        if self._own.ingress_id not in found:
            found[self._own.ingress_id] = self._own.report(query)
            silent = max(silent - 1, 0) if answers is not None else silent
        return Reports(list(found.values()), silent)


def own_deployment() -> DeploymentHandle[Any]:
    """The deployment that this replica belongs to."""
    context = serve.get_replica_context()
    return serve.get_deployment_handle(context.deployment, context.app_name)


async def serve_status_page(
    app: FastAPI,
    config: AppConfig,
    dispatcher: Dispatcher,
    peers: AllIngresses,
    event_loop: EventLoopSampler,
    canary: CanaryFollower,
    closing: contextlib.AsyncExitStack,
) -> OwnStatus | None:
    """Add the status page, unless it is switched off, and follow Serve until `closing`. Returns what this ingress
    reports to the others."""
    if not config.ingress.status_page:
        return None

    def loads() -> Mapping[str, Load]:
        busy = [use for name, use in event_loop.stats().items() if name == BUSY_RATIO]
        engines: dict[str, list[float]] = {}
        for one in dispatcher.connections():
            if one.takes_work:
                engines.setdefault(FleetPart(one.label.pool, config).deployment, []).append(one.load.utilization)
        targets = {name: (found, config.replicas.target_load) for name, found in engines.items()}
        return {**targets, "ingress": (busy, config.ingress.target_load)}

    application = serve.get_replica_context().app_name

    def journal(deployment: str) -> list[ScaleChange]:
        return ScaleJournal(application, deployment).changes()

    def note_failed_starts(deployments: Sequence[Deployment]) -> None:
        if (reason := failed_starts(deployments)) and config.replicas.may_sleep:
            dispatcher.note_failed_starts(reason)

    watch = ServeWatch(application, loads, journal=journal, on_view=note_failed_starts)
    await closing.enter_async_context(watch)
    own = OwnStatus(
        ingress_id=serve.get_replica_context().replica_id.unique_id,
        node=str(ray.util.get_node_ip_address()),
        dispatcher=dispatcher,
        records=peers.own,
        serve=watch,
        loop_use=event_loop.stats,
        started_unix_s=time.time(),
        canary=canary.view,
    )
    status = FleetStatus(own, AllReports(peers, own), config.model.served_name, f"vllm {vllm_device.version()}")
    page_routes.add(app, status, config.ingress.operators)
    return own
