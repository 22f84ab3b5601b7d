"""What is said to `ray_agent.py`, and what it answers: a line of JSON each."""

from __future__ import annotations

from typing import Literal

import msgspec

from chaos.procs import Proc


class AgentRequest(msgspec.Struct, frozen=True):
    """`find`: the processes a fault is for. `signal` and `slow`: done to them. `loads`: of all engine replicas."""

    do: Literal["find", "signal", "slow", "loads"]
    node_id: str = ""
    pid: int = 0
    fault: str = ""
    procs: list[Proc] = []
    signal: int = 0
    for_s: float = 0.0


class UnfinishedRequests(msgspec.Struct, frozen=True):
    """What one replica has to do."""

    replica_id: str
    unfinished: int


class AgentReply(msgspec.Struct, frozen=True):
    """`error` is empty where all went well."""

    error: str = ""
    no_engine_process: bool = False
    procs: list[Proc] = []
    count: int = 0
    unfinished_requests: list[UnfinishedRequests] = []
