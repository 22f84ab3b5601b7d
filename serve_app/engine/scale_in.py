"""Which engine replica goes when there are to be fewer: the one that loses least.

Serve stops the newest replica on the node with the fewest, whatever it holds, and has no setting for that (2.60). But
an autoscaling policy of ours runs in Serve's controller and gets what replicas report, so from there Serve's scheduler
can be given another choice: `taking_least_loss` wraps a policy with one that does this. The order:

1. replicas that do not run yet, and lose nothing: Serve's own order;
2. those whose node is about to go: they would go anyway;
3. the fewest tokens that would be computed again elsewhere: of requests that run, and of sessions whose prompts are in
   the cache (`session_tokens.py`). Where that differs by less than `STEP_TOKENS`, Serve's order decides: it empties
   nodes.

What is replaced is private to Serve. So it is replaced only where it looks as it is known, and wherever something is
not as expected, Serve's own choice stands, with a line in the controller's log. Gangs of Serve's are left to Serve;
an engine over several nodes is one replica, and no such gang.

Serve's controller runs this from a copy: the module imports nothing of ours.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray import cloudpickle

logger = logging.getLogger("ray.serve")

LOSS_TOKENS = "scale_in_loss_tokens"
"""The number that a replica reports (`record_autoscaling_stats`)."""

STEP_TOKENS = 4096
"""Some tenths of a second of prefill: not worth a node that stays half empty."""

METHOD = "_get_replicas_to_stop"
PARAMETERS = ("self", "deployment_id", "max_num_to_stop", "gang_id_by_replica", "replicas_by_gang_id", "gang_size")
"""Serve's choice: a method of its `DeploymentScheduler`."""

CONTEXTS = "step_contexts"
"""Our attribute of the method, which all copies of this module in the controller share."""

UNKNOWN = (AttributeError, KeyError, TypeError, ValueError)
"""How code for another Serve fails. The controller must not."""

R = TypeVar("R")
Policy = Callable[[Any], tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Candidate(Generic[R]):
    """A replica that may be stopped."""

    replica: R
    runs: bool
    node_leaves: bool
    loss_tokens: float


def least_loss(candidates: Sequence[Candidate[R]], count: int) -> list[Candidate[R]]:
    """The `count` of them to stop, from `candidates` in Serve's order."""

    def order(one: Candidate[R]) -> tuple[bool, bool, int]:
        return one.runs, not one.node_leaves, int(one.loss_tokens // STEP_TOKENS) if one.runs else 0

    return sorted(candidates, key=order)[:count]


def last_losses(raw_metrics: Mapping[str, Mapping[R, Sequence[Any]]] | None) -> dict[R, float]:
    """What each replica last reported, from Serve's `AutoscalingContext.raw_metrics`."""
    reports = (raw_metrics or {}).get(LOSS_TOKENS, {})
    return {replica: float(series[-1].value) for replica, series in reports.items() if series}


def problem(scheduler: Any) -> str:
    """Why Serve's choice cannot be replaced; empty if it can."""
    serves = inspect.unwrap(getattr(scheduler, METHOD, None) or (lambda: None))
    if serves.__name__ != METHOD:
        return f"Serve's scheduler has no {METHOD}"
    parameters = tuple(inspect.signature(serves).parameters)
    return "" if parameters == PARAMETERS else f"{METHOD} of Serve's scheduler takes {', '.join(parameters)}"


def replace_choice(scheduler: Any) -> dict[Any, Any]:
    """Give Serve's `DeploymentScheduler` our choice. Returns where it looks for the last `AutoscalingContext` of each
    deployment. A choice that another policy has given is replaced, since it may be an older copy of this module; what
    that policy tells is kept."""
    before = getattr(scheduler, METHOD)
    serves = inspect.unwrap(before)
    contexts: dict[Any, Any] = getattr(before, CONTEXTS, {})

    @functools.wraps(serves)
    def chosen(self: Any, deployment_id: Any, max_num_to_stop: int, *gangs: Any, **gangs_too: Any) -> set[Any]:
        def serves_choice(count: int) -> set[Any]:
            stopped: set[Any] = serves(self, deployment_id, count, *gangs, **gangs_too)
            return stopped

        is_gang = any(one is not None for one in (*gangs, *gangs_too.values()))
        if is_gang or deployment_id not in contexts:
            return serves_choice(max_num_to_stop)
        try:
            losses = last_losses(contexts[deployment_id].raw_metrics)
            found = _candidates(self, deployment_id, losses, serves_choice)
        except UNKNOWN:
            logger.exception("Scale-in: the replicas cannot be compared, Serve's own choice stands.")
            return serves_choice(max_num_to_stop)
        stopped = least_loss(found, max_num_to_stop)
        logger.info(explain(stopped, found))
        return {one.replica for one in stopped}

    setattr(chosen, CONTEXTS, contexts)
    setattr(scheduler, METHOD, chosen)
    return contexts


def _candidates(
    scheduler: Any, deployment_id: Any, losses: Mapping[Any, float], serves_choice: Callable[[int], set[Any]]
) -> list[Candidate[Any]]:
    """All replicas, in the order in which Serve would stop them."""
    nodes: Mapping[Any, str] = scheduler._running_replicas[deployment_id]  # noqa: SLF001  # see `problem`
    leaving: Collection[str] = scheduler._cluster_node_info_cache.get_draining_nodes()  # noqa: SLF001  # the same
    found: list[Any] = []
    while more := serves_choice(len(found) + 1) - set(found):
        found.extend(more)
    return [Candidate(one, one in nodes, nodes.get(one) in leaving, losses.get(one, 0.0)) for one in found]


def explain(stopped: Collection[Candidate[Any]], found: Collection[Candidate[Any]]) -> str:
    """`scale-in: stops a (0 tokens to compute again); stays: b (52,000)`."""

    def name(one: Candidate[Any]) -> str:
        return str(getattr(one.replica, "unique_id", one.replica))

    gone = ", ".join(f"{name(one)} ({_why(one)})" for one in stopped)
    kept = ", ".join(f"{name(one)} ({one.loss_tokens:,.0f})" for one in found if one not in stopped)
    return f"scale-in: stops {gone}; stays: {kept or 'none'}"


def _why(one: Candidate[Any]) -> str:
    if not one.runs:
        return "not started yet"
    return f"{one.loss_tokens:,.0f} tokens to compute again" + (", its node leaves" if one.node_leaves else "")


class LeastLossPolicy:
    """Another policy, as Serve calls it, that keeps what it is asked about for `replace_choice`.

    `policy` is what Serve would call, or a class of it that takes `kwargs`, pickled.
    """

    def __init__(self, policy: bytes, kwargs: Mapping[str, Any]) -> None:
        self._pickled = policy
        self._kwargs = dict(kwargs)
        self._policy: Policy | None = None
        self._contexts: dict[Any, Any] = {}

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """What the other policy says."""
        if self._policy is None:
            self._policy = self._start()
        self._contexts[context.deployment_id] = context
        return self._policy(context)

    def _start(self) -> Policy:
        """In the controller, at the first call."""
        found = cloudpickle.loads(self._pickled)
        policy: Policy = found
        if isinstance(found, type):
            policy = found(**self._kwargs)
        try:
            from ray.serve._private.deployment_scheduler import DeploymentScheduler

            why = problem(DeploymentScheduler)
        except ImportError as error:
            why = str(error)
        if why:
            logger.warning("Scale-in takes the replica that Serve chooses, and not that which loses least: %s.", why)
        else:
            self._contexts = replace_choice(DeploymentScheduler)
        return policy


def taking_least_loss(policy: Any) -> Any:
    """This `AutoscalingPolicy`, with `LeastLossPolicy` around what Serve calls."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # as Serve does with the policy's
    try:
        wrapped = cloudpickle.dumps(LeastLossPolicy(policy.get_serialized_policy_def(), policy.policy_kwargs))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    policy.set_serialized_policy_def(wrapped)
    return policy
