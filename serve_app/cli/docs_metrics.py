"""Writes `docs/metrics.md` from the modules that declare metrics and the enums that their labels come from, so that the
page cannot say anything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ray.serve.metrics import Counter

from serve_app.config.profile import ROOT
from serve_app.engine.figures import StartPhase
from serve_app.engine.key_costs import KeyCosts
from serve_app.engine.metrics import Declared, ReplicaMetrics, declared
from serve_app.engine.watchdog import EngineState
from serve_app.ingress.canary.gauges import CanaryGauges
from serve_app.ingress.canary.verdict import TrialState
from serve_app.ingress.gauges import ProcessGauges
from serve_app.ingress.key_metrics import KeyMetrics, Result
from serve_app.ingress.metrics import IngressMetrics
from serve_app.observability.phases import Phase
from serve_app.observability.records import RecordStore
from serve_app.protocol.errors import LimitKind, Outcome
from serve_app.protocol.key_labels import MAX_KEYS
from serve_app.protocol.service_class import ServiceClass
from serve_app.router.admission_control import AdmissionDecision
from serve_app.router.attempts import LOST, ReplicaState
from serve_app.router.canary_arm import Arm
from serve_app.router.fleet_state import FleetState
from serve_app.router.routing import Reason
from serve_app.scaling import Cause
from serve_app.scaling.scaling_metrics import ScalingMetrics

METRICS_PAGE = ROOT / "docs" / "metrics.md"

METRICS_INTRODUCTION = """\
# Metrics

Written by `python -m serve_app docs` from `serve_app/ingress/metrics.py`, `gauges.py`, `key_metrics.py`,
`serve_app/engine/metrics.py` and `serve_app/scaling/scaling_metrics.py`.

All of them are on the metrics endpoint that Ray has on every node, without a token; [Observability](observability.md)
says where, and has dashboards and alerts. A counter appears with its first count, unless it counts decisions, causes or
failed requests: these begin at 0. Histograms have `_bucket`, `_sum` and `_count`. Ray adds labels of its own
(`NodeAddress`, `WorkerId`, `SessionName` ...), Serve adds `application`, `deployment` and `replica` to ours.
"""

INGRESS_INTRODUCTION = """\
## From the ingresses

Whole requests, as their clients saw them, the replicas as an ingress sees them, and its event loop. Gauges are of one
ingress: sum over them what belongs to requests, take the maximum of what is about replicas.
"""

REPLICA_INTRODUCTION = """\
## From the engine replicas

What vLLM cannot know, or exports no other way.
"""

SCALING_INTRODUCTION = """\
## From Serve's controller

Where `slo` is configured: what the scaling policy sees and decides ([Autoscaling](autoscaling.md)). Gauges are set with
every decision, once a second.
"""

LABELS_INTRODUCTION = """\
## Labels

No label comes from a user.
"""

LABEL_VALUES: dict[str, Sequence[str]] = {
    "outcome": tuple(Outcome),
    "reason": tuple(Reason),
    "decision": tuple(AdmissionDecision),
    "cause": tuple(end.value for end in LOST),
    "class": tuple(one.word for one in ServiceClass),
    "result": tuple(Result),
    "basis": ("measured", "constant"),
}
"""What a label may be, wherever it is. `route` and `key` are bounded otherwise: see `_labels`."""

LABEL_VALUES_OF: dict[tuple[str, str], Sequence[str]] = {
    ("step_tokens", "kind"): ("prompt", "cached", "output"),
    ("step_key_tokens", "kind"): ("prompt", "cached", "output"),
    ("step_rate_limited", "kind"): tuple(LimitKind),
    ("step_replicas", "state"): tuple(ReplicaState),
    ("step_fleet_state", "state"): tuple(FleetState),
    ("step_canary_state", "state"): tuple(TrialState),
    ("step_canary_requests", "arm"): tuple(Arm),
    ("step_watchdog_state", "state"): tuple(EngineState),
    ("step_scaling_decisions", "cause"): tuple(one.value for one in Cause if one is not Cause.NONE),
    ("step_scaling_decisions", "direction"): ("up", "down"),
    ("step_engine_start_seconds", "phase"): tuple(StartPhase),
    ("step_request_phase_seconds", "phase"): tuple(Phase),
}
"""The same of labels that mean something else in each metric."""

VLLM_METRICS = {
    "num_requests_running": "Requests in the batch.",
    "num_requests_waiting": "Requests that wait for a slot or for cache.",
    "kv_cache_usage_perc": "Share of the KV cache in use, 0 to 1 (its name notwithstanding).",
    "num_preemptions_total": "Requests put back for want of cache. More than a few: fewer `max-num-seqs`.",
    "prompt_tokens_total": "Prompt tokens that were processed.",
    "generation_tokens_total": "Output tokens.",
    "prefix_cache_queries_total": "Prompt tokens looked for in the prefix cache.",
    "prefix_cache_hits_total": "Of these, found.",
    "request_queue_time_seconds": "Wait in the engine, from its arrival there to its first scheduling.",
    "request_prefill_time_seconds": "From first scheduling to first token.",
    "time_to_first_token_seconds": "From arrival at the engine to first token.",
    "inter_token_latency_seconds": "Between tokens; with MTP several come in one step.",
    "request_time_per_output_token_seconds": "Mean over a request, first token excluded.",
    "e2e_request_latency_seconds": "A request's whole time in the engine.",
    "request_success_total": "Finished requests, by `finished_reason`.",
    "spec_decode_num_drafts_total": "MTP: steps in which tokens were drafted.",
    "spec_decode_num_draft_tokens_total": "MTP: drafted tokens.",
    "spec_decode_num_accepted_tokens_total": "MTP: drafted tokens that were accepted.",
    "spec_decode_num_accepted_tokens_per_pos_total": "MTP: the same, by `position` in the draft.",
}
"""Those that answer an operator's questions, as Ray exports them (without `ray_vllm_`)."""

VLLM_INTRODUCTION = """\
## vLLM's

From the engine replicas, through vLLM's own Ray stat logger: `vllm:x` in vLLM's documentation is `ray_vllm_x` here.
Labels: `ReplicaId`, `model_name`, `engine`. There are more; these answer most questions.
"""


def metrics_page() -> str:
    """The whole page."""
    return "\n".join(
        [
            METRICS_INTRODUCTION,
            INGRESS_INTRODUCTION,
            *_table(ingress_metrics()),
            "",
            REPLICA_INTRODUCTION,
            *_table(replica_metrics()),
            "",
            SCALING_INTRODUCTION,
            *_table(scaling_metrics()),
            "",
            LABELS_INTRODUCTION,
            *_labels(),
            "",
            VLLM_INTRODUCTION,
            *_vllm_metrics(),
            "",
        ]
    )


def ingress_metrics() -> list[Declared]:
    """What an ingress exports."""
    keys = KeyMetrics()
    return declared(IngressMetrics("", RecordStore(), keys), keys, ProcessGauges(), CanaryGauges())


def scaling_metrics() -> list[Declared]:
    """What the scaling policy exports."""
    return declared(ScalingMetrics("", ""))


def replica_metrics() -> list[Declared]:
    """What an engine replica exports."""
    costs = KeyCosts(1, lambda: None)
    return declared(ReplicaMetrics(costs), costs)


def _table(metrics: Iterable[Declared]) -> Iterator[str]:
    yield from ("| metric | labels | |", "| --- | --- | --- |")
    for metric in metrics:
        about = metric.info
        kind = "counter" if isinstance(metric, Counter) else type(metric).__name__.lower()
        name = f"ray_{about['name']}{'_total' if kind == 'counter' else ''}"
        labels = ", ".join(f"`{key}`" for key in about["tag_keys"]) or "none"
        yield f"| `{name}` ({kind}) | {labels} | {about['description']} |"


def _labels() -> Iterator[str]:
    yield from ("| label | values |", "| --- | --- |")
    yield "| `route` | the pattern of a route that is served, or `unserved` |"
    yield f"| `key` | a name of `ingress.keys_file`; beyond {MAX_KEYS} of them, those that come later are `other` |"
    named = [(f"`{label}`", values) for label, values in LABEL_VALUES.items()]
    named += [(f"`{label}` of `{metric}`", values) for (metric, label), values in LABEL_VALUES_OF.items()]
    for label, values in named:
        yield f"| {label} | {', '.join(f'`{value}`' for value in values)} |"


def _vllm_metrics() -> Iterator[str]:
    yield from ("| metric | |", "| --- | --- |")
    for name, about in VLLM_METRICS.items():
        yield f"| `ray_vllm_{name}` | {about} |"
