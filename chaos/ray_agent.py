"""`python -m chaos.ray_agent ADDRESS`: what only Ray can do for chaos, an order a line, a reply a line.

A process of its own, so that the one that measures has none of Ray's threads, and a Ctrl-C that it gets does not take
this one's connection away before what was stopped is undone.
"""

from __future__ import annotations

import sys
import threading

import msgspec
import psutil
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chaos import procs
from chaos.agent_protocol import AgentReply, AgentRequest, UnfinishedRequests
from chaos.fleet import ENGINE
from serve_app.protocol.messages import decode_info

TASK_S = 60.0
"""How long a task may take to run on its node, besides what it is told to take."""
INFO_TIMEOUT_S = 5.0


def run_here(request: AgentRequest) -> AgentReply:
    """Carry out an order on the node where this runs."""
    try:
        if request.do == "find":
            return AgentReply(procs=procs.find(request.pid, request.fault))
        if request.do == "slow":
            procs.slow(request.procs, request.for_s, threading.Event())
            return AgentReply()
        return AgentReply(count=procs.send(request.procs, request.signal))
    except procs.NoEngineProcess:
        return AgentReply(no_engine_process=True)
    except psutil.Error as error:
        return AgentReply(error=str(error))


def run_on_node(request: AgentRequest) -> AgentReply:
    """The same on the order's node, in a task that takes none of its resources."""
    pinned = NodeAffinitySchedulingStrategy(node_id=request.node_id, soft=False)
    task = ray.remote(_in_task).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
    data: bytes = ray.get(task.remote(msgspec.json.encode(request)), timeout=TASK_S + request.for_s)
    return msgspec.json.decode(data, type=AgentReply)


def _in_task(data: bytes) -> bytes:
    return msgspec.json.encode(run_here(msgspec.json.decode(data, type=AgentRequest)))


def unfinished_requests(engines: DeploymentHandle) -> AgentReply:
    """What every engine replica says of itself."""
    answers = engines.broadcast("info").results(timeout_s=INFO_TIMEOUT_S, return_exceptions=True)
    infos = [decode_info(one) for one in answers if isinstance(one, bytes)]
    silent = len(answers) - len(infos)
    return AgentReply(
        unfinished_requests=[UnfinishedRequests(info.replica_id, info.load.unfinished) for info in infos],
        error=f"{silent} of {len(answers)} replicas do not answer" if silent else "",
    )


def main(address: str, application: str) -> None:
    """Answer until the input ends."""
    ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="ERROR")
    engines = serve.get_deployment_handle(ENGINE, application)
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=AgentRequest)
        try:
            reply = unfinished_requests(engines) if request.do == "loads" else run_on_node(request)
        except (RayError, RayServeException, TimeoutError) as error:
            reply = AgentReply(error=f"{type(error).__name__}: {error}")
        sys.stdout.write(f"{msgspec.json.encode(reply).decode()}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:3])
