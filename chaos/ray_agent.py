"""`python -m chaos.ray_agent ADDRESS APPLICATION`: what only Ray can do for chaos. Reads a JSON request per line.

It is a process of its own, so that the measuring process has no threads of Ray, and so that Ctrl-C does not end the
connection to Ray before stopped processes are resumed or killed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TextIO

import msgspec
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chaos import procs
from chaos.fleet import ENGINE
from chaos.procs import AgentReply, AgentRequest, UnfinishedRequests
from serve_app.cli import leave
from serve_app.protocol.messages import decode_info

TASK_S = 60.0
"""Longest time for a task on its node, besides the duration that it was given."""
INFO_S = 5.0

Execute = Callable[[AgentRequest], AgentReply]


def execute_on_node(request: AgentRequest) -> AgentReply:
    """Execute the request on its node, in a Ray task that takes no resources."""
    pinned = NodeAffinitySchedulingStrategy(node_id=request.node_id, soft=False)
    task = ray.remote(_task).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
    data: bytes = ray.get(task.remote(msgspec.json.encode(request)), timeout=TASK_S + request.for_s)
    return msgspec.json.decode(data, type=AgentReply)


def _task(data: bytes) -> bytes:
    return msgspec.json.encode(procs.execute(msgspec.json.decode(data, type=AgentRequest)))


def unfinished_requests(engines: DeploymentHandle) -> AgentReply:
    """How many requests every engine replica holds, by its own count."""
    answers = engines.broadcast("info").results(timeout_s=INFO_S, return_exceptions=True)
    infos = [decode_info(answer) for answer in answers if isinstance(answer, bytes)]
    missing = len(answers) - len(infos)
    return AgentReply(
        unfinished_requests=[UnfinishedRequests(info.replica_id, info.load.unfinished) for info in infos],
        error=f"{missing} of {len(answers)} replicas do not answer" if missing else "",
    )


def drain_node(request: AgentRequest) -> AgentReply:
    """Have Ray drain the node of the request."""
    try:
        leave.drain(request.node_id, request.for_s, "python -m chaos")
    except leave.NotDrained as error:
        return AgentReply(error=f"node {request.node_id} is not drained: {error}")
    return AgentReply()


def answer_requests(requests: Iterable[bytes], replies: TextIO, execute: Execute) -> None:
    """Write one reply line for each request line, until the requests end."""
    for line in requests:
        try:
            reply = execute(msgspec.json.decode(line, type=AgentRequest))
        except (RayError, RayServeException, TimeoutError) as error:
            reply = AgentReply(error=f"{type(error).__name__}: {error}")
        replies.write(f"{msgspec.json.encode(reply).decode()}\n")
        replies.flush()


def main(address: str, application: str) -> None:
    """Answer requests from stdin until it ends."""
    ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="ERROR")
    engines = serve.get_deployment_handle(ENGINE, application)

    def execute(request: AgentRequest) -> AgentReply:
        if request.do == "drain":
            return drain_node(request)
        return unfinished_requests(engines) if request.do == "unfinished" else execute_on_node(request)

    answer_requests(sys.stdin.buffer, sys.stdout, execute)


if __name__ == "__main__":
    main(*sys.argv[1:3])
