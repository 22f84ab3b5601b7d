"""What Serve knows of the application: its replicas with their nodes, those that are starting, and changed targets.

Serve keeps no history of its scale decisions (2.60 has the fields and leaves them empty), so each ingress asks the
controller every `WATCH_PERIOD_S` and keeps the changes that it finds. The reasons are those in the journal of a policy
that keeps one (`scaling/journal.py`), which also has what was before this ingress; of other policies, the loads that
they looked at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

import msgspec
import ray
from msgspec.structs import replace
from ray.exceptions import RayError

from serve_app.engine import start_board
from serve_app.observability.fleet import Deployment, ScaleDecision, ServeReplica, ServeView, scale_reason, zero_reason
from serve_app.scaling.journal import ScaleChange

logger = logging.getLogger(__name__)

WATCH_PERIOD_S = 15.0
"""A change of a target takes Serve's delays, half a minute and more; a call costs the controller some milliseconds."""

FRESH_S = 4.0
"""So old an answer may be shown: the page asks every two seconds, and perhaps several pages do."""

TIMEOUT_S = 1.0

KEPT_DECISIONS = 50

CONTROLLER, NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
"""`ray.serve` has no public call for the details that its REST API gives, and that listens on the head node's loopback
only."""

Fetch = Callable[[], Awaitable[object]]
"""Serve's details (`ServeInstanceDetails` as a dict). Raises `RayError`, `TimeoutError`, `ValueError`."""

STARTING = "STARTING"
"""Serve's state of a replica whose constructor runs."""

Starts = Callable[[Sequence[str]], Mapping[str, str]]
"""What replicas say of their start, by id (`engine/start_board.read`)."""

Journal = Callable[[str], Sequence[ScaleChange]]
"""The changes that a deployment's policy has made, the oldest first; none if it keeps no journal. It may block. Raises
`RayError`, `ValueError`."""

Load = tuple[Sequence[float], float]
"""The loads of a deployment's replicas as far as known, and its `target_load`."""


class ServeWatch:
    """Use as an async context manager. `loads` gives what the policies look at, by deployment."""

    def __init__(
        self,
        application: str,
        loads: Callable[[], Mapping[str, Load]],
        fetch: Fetch | None = None,
        journal: Journal = lambda _deployment: (),
        starts: Starts | None = None,
        on_view: Callable[[Sequence[Deployment]], None] = lambda _deployments: None,
    ) -> None:
        self._application = application
        self._loads = loads
        self._fetch = fetch or _Controller().details
        self._journal = journal
        self._read_starts = starts or start_board.read
        self._on_view = on_view
        self._view = ServeView(problem="Serve has not answered yet.")
        self._asked_s = float("-inf")
        self._asking = asyncio.Lock()
        self._targets: dict[str, int] = {}
        self._read_until_unix_s: dict[str, float] = {}
        self._decisions: deque[ScaleDecision] = deque(maxlen=KEPT_DECISIONS)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="serve watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def decisions(self) -> Sequence[ScaleDecision]:
        """See `fleet_status.Serve`."""
        return list(self._decisions)

    async def view(self) -> ServeView:
        """See `fleet_status.Serve`."""
        async with self._asking:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._asked_s >= FRESH_S:
                self._asked_s = now_s
                await self._ask()
        return self._view

    async def _watch(self) -> None:
        while True:
            await self.view()
            await asyncio.sleep(WATCH_PERIOD_S)

    async def _ask(self) -> None:
        try:
            details = await asyncio.wait_for(self._fetch(), TIMEOUT_S)
            deployments = await self._with_starts(read_deployments(details, self._application))
        except (RayError, TimeoutError, ValueError, msgspec.ValidationError) as error:
            problem = f"Serve's controller does not answer ({type(error).__name__}): nodes and targets may be old."
            self._view = replace(self._view, problem=problem)
            return
        await self._note_changes(deployments)
        self._view = ServeView(deployments)
        self._on_view(deployments)

    async def _with_starts(self, deployments: list[Deployment]) -> list[Deployment]:
        """The same, with what the starting replicas say of their start."""
        waiting = [one.replica_id for found in deployments for one in found.replicas if one.state == STARTING]
        if not waiting:
            return deployments
        try:
            said = await asyncio.wait_for(asyncio.to_thread(self._read_starts, waiting), TIMEOUT_S)
        except TimeoutError:
            return deployments
        return [
            replace(found, replicas=[replace(one, starting=said.get(one.replica_id, "")) for one in found.replicas])
            for found in deployments
        ]

    async def _note_changes(self, deployments: Sequence[Deployment]) -> None:
        for one in deployments:
            before = self._targets.get(one.name)
            if before == one.target:
                continue
            self._targets[one.name] = one.target
            changes = await self._said_changes(one.name)
            if before is not None and (not changes or changes[-1].after != one.target):
                seen = self._loads().get(one.name, ((), 0.0))
                reason = zero_reason(before, one.target) or scale_reason(one, *seen)
                changes.append(ScaleDecision(time.time(), one.name, before, one.target, reason))
            self._decisions.extend(changes)
            if before is not None:
                facts = {"before": before, "after": one.target, "reason": changes[-1].reason}
                logger.info("target changed", extra={"deployment": one.name, **facts})

    async def _said_changes(self, deployment: str) -> list[ScaleDecision]:
        """What the deployment's journal has that was not read before."""
        try:
            found = await asyncio.wait_for(asyncio.to_thread(self._journal, deployment), TIMEOUT_S)
        except (RayError, TimeoutError, ValueError, RuntimeError) as error:
            logger.warning("the reasons of scale decisions cannot be read", extra={"error": str(error)})
            return []
        since = self._read_until_unix_s.get(deployment, float("-inf"))
        new = [ScaleDecision(one.at_unix_s, deployment, one.before, one.after, one.reason) for one in found]
        new = [one for one in new if one.at_unix_s > since]
        if new:
            self._read_until_unix_s[deployment] = new[-1].at_unix_s
        return new


class _Replica(msgspec.Struct):
    replica_id: str
    state: str
    start_time_s: float = 0.0
    node_ip: str | None = None


class _Deployment(msgspec.Struct):
    name: str
    status: str
    target_num_replicas: int
    message: str = ""
    deployment_config: dict[str, Any] = {}
    replicas: list[_Replica] = []


class _Application(msgspec.Struct):
    deployments: dict[str, _Deployment] = {}


class _Details(msgspec.Struct):
    """The fields of Ray's `ServeInstanceDetails` that are read. Its own class takes ten times as long to make."""

    applications: dict[str, _Application] = {}


def read_deployments(details: object, application: str) -> list[Deployment]:
    """The deployments of an application in Serve's details. Raises `msgspec.ValidationError`."""
    found = msgspec.convert(details, _Details).applications.get(application)
    return [] if found is None else [_deployment(one) for one in found.deployments.values()]


def _deployment(one: _Deployment) -> Deployment:
    autoscaled = one.deployment_config.get("autoscaling_config") is not None
    replicas = [
        ServeReplica(replica.replica_id, replica.state, replica.node_ip or "", replica.start_time_s)
        for replica in one.replicas
    ]
    return Deployment(one.name, one.status.lower(), one.target_num_replicas, one.message, autoscaled, replicas)


class _Controller:
    """Asks Serve's controller."""

    def __init__(self) -> None:
        self._actor: Any = None

    async def details(self) -> object:
        """See `Fetch`."""
        if self._actor is None:
            self._actor = await asyncio.to_thread(ray.get_actor, CONTROLLER, namespace=NAMESPACE)
        method = getattr(self._actor, "get_serve_instance_details", None)
        if method is None:
            raise ValueError("this Ray's controller gives no details")
        details: object = await method.remote()
        return details
