"""A service for chaos' own tests: a dashboard and an endpoint on real sockets, whose replicas are idle processes.

A stream whose process dies or is stopped continues on another one, as in the real service. Or it is wrong on purpose:
it repeats a character, or it ends early.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil

GAP_S = 0.005
ALIVE = {psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP}
SERVER_ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nconnection: close\r\n\r\n"


@dataclass
class StandInFleet:
    """`behaviour` after the loss of a replica: `correct`, `doubles` a character, or `drops` the stream."""

    behaviour: str = "correct"
    port: int = 0
    replicas: dict[str, psutil.Popen] = field(default_factory=dict)
    started: int = 0
    slow_start: bool = False
    """If set, dead replicas are not replaced."""
    target_count: int = 0
    log: list[str] = field(default_factory=list)
    upgrades: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the endpoint and of the dashboard."""
        return f"http://127.0.0.1:{self.port}"

    def start_replica(self) -> None:
        self.started += 1
        self.replicas[f"r{self.started}"] = psutil.Popen(["sleep", "600"])

    def is_alive(self, name: str) -> bool:
        try:
            return self.replicas[name].status() in ALIVE
        except (psutil.NoSuchProcess, KeyError):
            return False

    def end(self, name: str) -> None:
        process = self.replicas.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()

    def remove_dead(self) -> None:
        for name in [name for name in self.replicas if not self.is_alive(name)]:
            self.end(name)

    def replace_dead(self) -> None:
        self.target_count = max(self.target_count, len(self.replicas))
        self.remove_dead()
        while not self.slow_start and len(self.replicas) < self.target_count:
            self.start_replica()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        with contextlib.suppress(ConnectionError):
            if path == "/v1/completions":
                await self._complete(writer, json.loads(body), fields["x-request-id"])
            else:
                if method == "PUT":
                    self._upgrade(json.loads(body))
                if "/api/v0/logs" in path and f"actor_id=i{len(self.upgrades)}&" not in path:
                    writer.write(SERVER_ERROR)  # as Ray answers for the log of an actor that has ended
                else:
                    writer.write(HEAD % b"application/json" + self._reply(path))
                await writer.drain()
        writer.close()

    def _reply(self, path: str) -> bytes:
        if path.startswith("/api/serve"):
            self.replace_dead()
            return json.dumps(self._details()).encode()
        if path.startswith("/api/v0/logs"):
            return "\n".join(self.log).encode()
        if path.startswith("/api/prometheus"):
            return json.dumps([{"targets": [f"127.0.0.1:{self.port}"]}]).encode()
        if path == "/metrics":
            migrations = sum(json.loads(line[line.index("{") :])["migrations"] for line in self.log)
            return f'ray_step_migrations_total{{replica="i"}} {migrations}.0\n'.encode()
        return json.dumps({"data": [{"id": "stand-in"}]}).encode()

    def _details(self) -> dict[str, object]:
        def replica(name: str, pid: int) -> dict[str, object]:
            return {"replica_id": name, "state": "RUNNING", "pid": pid, "node_ip": "127.0.0.1", "actor_id": name}

        engines = [replica(name, process.pid) for name, process in self.replicas.items()]
        deployments = {"engine": {"replicas": engines}, "ingress": {"replicas": [replica(f"i{len(self.upgrades)}", 0)]}}
        return {"applications": {"step": {"deployments": deployments, "deployed_app_config": {"name": "step"}}}}

    def _upgrade(self, config: dict[str, object]) -> None:
        self.upgrades.append(json.dumps(config))
        for name in list(self.replicas):
            self.end(name)
            self.start_replica()

    async def _complete(self, writer: asyncio.StreamWriter, request: dict[str, object], request_id: str) -> None:
        prompt, count = str(request["prompt"]), int(str(request["max_tokens"]))
        replicas = [sorted(self.replicas)[len(prompt) % len(self.replicas)]]
        usage = {"prompt_tokens": len(prompt), "completion_tokens": count}
        writer.write(HEAD % (b"text/event-stream" if request["stream"] else b"application/json"))
        whole = ""
        for number in range(count):
            text = prompt[number % len(prompt)]
            if not self.is_alive(replicas[-1]):
                replicas.append(next(name for name in self.replicas if self.is_alive(name)))
                if self.behaviour == "drops":
                    return
                text *= 2 if self.behaviour == "doubles" else 1
            whole += text
            if request["stream"]:
                finish = "length" if number == count - 1 else None
                writer.write(event(choices=[{"text": text, "finish_reason": finish}]))
                await writer.drain()
            await asyncio.sleep(GAP_S)  # the time of a step
        line = {"id": request_id, "migrations": len(replicas) - 1, "replica": replicas}
        self.log.append(f"serve_app.access: request {json.dumps(line)}")
        if request["stream"]:
            writer.write(event(choices=[], usage=usage) + b"data: [DONE]\n\n")
        else:
            choices = [{"text": whole, "finish_reason": "length"}]
            writer.write(json.dumps({"id": "c", "choices": choices, "usage": usage}).encode())
        await writer.drain()


def event(**values: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps({"id": "c", **values}).encode() + b"\n\n"


@asynccontextmanager
async def stand_in(behaviour: str = "correct") -> AsyncIterator[StandInFleet]:
    """A running service with two replicas. It leaves no process."""
    fleet = StandInFleet(behaviour)
    for _ in range(2):
        fleet.start_replica()
    server = await asyncio.start_server(fleet.serve, "127.0.0.1", 0)
    fleet.port = server.sockets[0].getsockname()[1]
    try:
        async with server:
            yield fleet
    finally:
        for name in list(fleet.replicas):
            fleet.end(name)
