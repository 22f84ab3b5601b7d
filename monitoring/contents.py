"""The five dashboards: the fleet, a replica, a key, MTP, and the objectives.

`python -m monitoring` writes them to `monitoring/dashboards`. Metrics are those of `docs/metrics.md` and the recording
rules in `monitoring/rules`; a test knows all of their names, and evaluates every query against a live service.
"""

from __future__ import annotations

from typing import Final

from monitoring.grafana import Dashboard, Panel, Query, Row, Variable

RATE: Final = "[$__rate_interval]"

REPLICA: Final = Variable("replica", "label_values(ray_step_watchdog_state, replica)")
KEY: Final = Variable("key", "label_values(ray_step_key_requests_total, key)")

OF_REPLICA: Final = 'replica=~"$replica"'
OF_REPLICA_ID: Final = 'ReplicaId=~"$replica"'
"""vLLM's label for the same."""
OF_KEY: Final = 'key=~"$key"'
ANSWERED: Final = 'result=~"ok|cancelled"'
PROMPT: Final = 'kind="prompt"'
CACHED: Final = 'kind="cached"'
OUTPUT: Final = 'kind="output"'


def rate(metric: str, by: str = "", where: str = "") -> str:
    """A counter's rate, summed."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{{where}}}{RATE}))" if where else f"{grouped} (rate({metric}{RATE}))"


def total(metric: str, by: str = "", where: str = "") -> str:
    """A gauge, summed."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} ({metric}{{{where}}})" if where else f"{grouped} ({metric})"


def highest(metric: str, by: str = "", where: str = "") -> str:
    """A gauge of which the worst matters."""
    return total(metric, by, where).replace("sum", "max", 1)


GENERATING = 'route=~"/v1/(chat/completions|completions|responses|messages)"'
"""Requests for answers: no probes, no status pages."""


def quantiles(histogram: str, *shares: float, where: str = "") -> tuple[Query, ...]:
    """Quantiles of a histogram, of all ingresses."""
    return tuple(
        Query(f"histogram_quantile({share:g}, {rate(f'{histogram}_bucket', 'le', where)})", f"p{share * 100:g}")
        for share in shares
    )


def one(title: str, unit: str, expr: str, legend: str = "", description: str = "", *, stacked: bool = False) -> Panel:
    """A panel with one query."""
    return Panel(title, unit, (Query(expr, legend),), description, stacked)


FLEET: Final = Dashboard(
    "step-fleet",
    "Step: fleet",
    "The service as its clients and its operators see it.",
    (
        Row(
            (
                one("Requests by outcome", "reqps", rate("ray_step_requests_total", "outcome"), stacked=True),
                one("Requests in flight", "short", total("ray_step_inflight_requests", "replica"), stacked=True),
                one("Replicas by state", "short", highest("ray_step_replicas", "state")),
            )
        ),
        Row(
            (
                Panel("Time to first token", "s", quantiles("ray_step_time_to_first_token_seconds", 0.5, 0.9, 0.99)),
                Panel(
                    "Request duration",
                    "s",
                    quantiles("ray_step_request_duration_seconds", 0.5, 0.9, 0.99, where=GENERATING),
                ),
                one(
                    "Where the time goes",
                    "s",
                    f"{rate('ray_step_request_phase_seconds_sum', 'phase')} / ignoring(phase) group_left "
                    f"{rate('ray_step_request_duration_seconds_count', '', GENERATING)}",
                    description="Seconds per request in each phase, of the requests that end.",
                    stacked=True,
                ),
            )
        ),
        Row(
            (
                one(
                    "Waiting, by class",
                    "short",
                    total("ray_step_replica_queued_requests", "class"),
                    "{{class}} waiting",
                    "Sequences that wait at the replicas.",
                ),
                Panel(
                    "Tokens in flight and waiting",
                    "short",
                    (
                        Query(total("ray_step_inflight_tokens"), "in flight at the ingresses"),
                        Query(total("ray_step_replica_queued_tokens"), "waiting at the replicas"),
                        Query(total("ray_step_replica_queued_prefill_tokens"), "to be computed"),
                    ),
                ),
                one("Tokens", "short", rate("ray_step_tokens_total", "kind"), description="Per second."),
            )
        ),
        Row(
            (
                one("Admission", "reqps", rate("ray_step_admission_decisions_total", "decision"), stacked=True),
                one("Routing", "reqps", rate("ray_step_routing_decisions_total", "reason"), stacked=True),
                one("Migrations by cause", "reqps", rate("ray_step_migrations_total", "cause"), stacked=True),
            )
        ),
        Row(
            (
                one(
                    "Prefix hit ratio",
                    "percentunit",
                    "step:prefix_hit:ratio5m",
                    "{{model_name}}",
                    "Share of the prompts' tokens that the engines found in their caches.",
                ),
                one("KV cache in use", "percentunit", highest("ray_vllm_kv_cache_usage_perc", "ReplicaId")),
                one("Watchdog", "short", total("ray_step_watchdog_state", "state"), "{{state}}", "Engines by state."),
            )
        ),
        Row(
            (
                Panel(
                    "Event loops",
                    "s",
                    (
                        Query(highest("ray_step_event_loop_lag_seconds", "replica"), "ingress {{replica}}"),
                        Query(highest("ray_step_replica_event_loop_lag_seconds", "replica"), "engine {{replica}}"),
                    ),
                    "How late a timer ran.",
                ),
                one("Ingress CPU", "percentunit", highest("ray_step_event_loop_busy_ratio", "replica")),
                Panel(
                    "Data plane",
                    "Bps",
                    (Query(rate("ray_step_frame_bytes_sent_total"), "bytes from replicas to ingresses"),),
                ),
                one(
                    "Frame lateness",
                    "s",
                    highest("ray_step_frame_lateness_seconds", "replica"),
                    description="A frame is due every half second; the worst of ten seconds.",
                ),
            )
        ),
    ),
)

ONE_REPLICA: Final = Dashboard(
    "step-replica",
    "Step: replica",
    "An engine replica: what waits there, what its engine does, and how it started.",
    (
        Row(
            (
                Panel(
                    "Sequences",
                    "short",
                    (
                        Query(
                            total("ray_step_replica_inflight_requests", "replica, class", OF_REPLICA),
                            "{{replica}} {{class}} in the engine",
                        ),
                        Query(
                            total("ray_step_replica_queued_requests", "replica, class", OF_REPLICA),
                            "{{replica}} {{class}} waiting",
                        ),
                    ),
                ),
                Panel(
                    "Tokens",
                    "short",
                    (
                        Query(
                            total("ray_step_replica_inflight_tokens", "replica", OF_REPLICA),
                            "{{replica}} in the engine",
                        ),
                        Query(total("ray_step_replica_queued_tokens", "replica", OF_REPLICA), "{{replica}} waiting"),
                        Query(
                            total("ray_step_replica_queued_prefill_tokens", "replica", OF_REPLICA),
                            "{{replica}} to be computed",
                        ),
                    ),
                ),
                Panel(
                    "In vLLM",
                    "short",
                    (
                        Query(
                            total("ray_vllm_num_requests_running", "ReplicaId", OF_REPLICA_ID), "{{ReplicaId}} running"
                        ),
                        Query(
                            total("ray_vllm_num_requests_waiting", "ReplicaId", OF_REPLICA_ID), "{{ReplicaId}} waiting"
                        ),
                    ),
                ),
            )
        ),
        Row(
            (
                one(
                    "KV cache in use",
                    "percentunit",
                    highest("ray_vllm_kv_cache_usage_perc", "ReplicaId", OF_REPLICA_ID),
                ),
                one(
                    "Preemptions",
                    "reqps",
                    f"{rate('ray_vllm_num_preemptions_total', 'ReplicaId', OF_REPLICA_ID)} or "
                    f"0 * {total('ray_vllm_num_requests_running', 'ReplicaId', OF_REPLICA_ID)}",
                    description="Requests put back for want of cache: their prefill is done again.",
                ),
                one(
                    "Prefix hit ratio",
                    "percentunit",
                    f"{rate('ray_vllm_prefix_cache_hits_total', 'ReplicaId', OF_REPLICA_ID)} / "
                    f"{rate('ray_vllm_prefix_cache_queries_total', 'ReplicaId', OF_REPLICA_ID)}",
                ),
            )
        ),
        Row(
            (
                Panel(
                    "Tokens computed",
                    "short",
                    (
                        Query(rate("ray_vllm_prompt_tokens_total", "ReplicaId", OF_REPLICA_ID), "{{ReplicaId}} prompt"),
                        Query(
                            rate("ray_vllm_generation_tokens_total", "ReplicaId", OF_REPLICA_ID), "{{ReplicaId}} output"
                        ),
                    ),
                    "Per second.",
                ),
                one("Watchdog", "short", highest("ray_step_watchdog_state", "replica, state", OF_REPLICA)),
                one(
                    "Since the last step",
                    "s",
                    highest("ray_step_engine_silence_seconds", "replica", OF_REPLICA),
                    description="While it has work. Tens of seconds: a hang, a compiler or a very long prompt.",
                ),
            )
        ),
        Row(
            (
                one(
                    "Start, by phase",
                    "s",
                    highest("ray_step_engine_start_seconds", "replica, phase", OF_REPLICA),
                    stacked=True,
                ),
                Panel(
                    "Frames",
                    "short",
                    (
                        Query(rate("ray_step_frames_sent_total", "replica", OF_REPLICA), "{{replica}} frames/s"),
                        Query(highest("ray_step_unsent_deltas", "replica", OF_REPLICA), "{{replica}} unsent deltas"),
                    ),
                ),
                one("Frame bytes", "Bps", rate("ray_step_frame_bytes_sent_total", "replica", OF_REPLICA)),
                one("Event loop lag", "s", highest("ray_step_replica_event_loop_lag_seconds", "replica", OF_REPLICA)),
            )
        ),
    ),
    (REPLICA,),
)

ONE_KEY: Final = Dashboard(
    "step-key",
    "Step: API key",
    "What each API key uses. Empty without a keys file.",
    (
        Row(
            (
                one("Requests by result", "reqps", rate("ray_step_key_requests_total", "key, result", OF_KEY)),
                one(
                    "Not answered",
                    "percentunit",
                    f"1 - {rate('ray_step_key_requests_total', 'key', f'{OF_KEY}, {ANSWERED}')} / "
                    f"{rate('ray_step_key_requests_total', 'key', OF_KEY)}",
                    description="Share of refused and failed requests.",
                ),
            )
        ),
        Row(
            (
                one(
                    "Tokens by kind",
                    "short",
                    rate("ray_step_key_tokens_total", "key, kind", OF_KEY),
                    "{{key}} {{kind}}",
                ),
                one(
                    "Share of prompts from the cache",
                    "percentunit",
                    f"{rate('ray_step_key_tokens_total', 'key', f'{OF_KEY}, {CACHED}')} / "
                    f"{rate('ray_step_key_tokens_total', 'key', f'{OF_KEY}, {PROMPT}')}",
                ),
                one(
                    "Most output tokens",
                    "short",
                    f"topk(10, {rate('ray_step_key_tokens_total', 'key', OUTPUT)})",
                ),
            )
        ),
    ),
    (KEY,),
)

MTP: Final = Dashboard(
    "step-mtp",
    "Step: MTP",
    "How many of the drafted tokens are accepted.",
    (
        Row(
            (
                one("Acceptance", "percentunit", "step:mtp_acceptance:ratio10m", "{{model_name}}"),
                one(
                    "Acceptance by position",
                    "percentunit",
                    f"{rate('ray_vllm_spec_decode_num_accepted_tokens_per_pos_total', 'position')} / "
                    f"ignoring(position) group_left {rate('ray_vllm_spec_decode_num_drafts_total')}",
                    "position {{position}}",
                    "Of the drafts, the share whose token at this position was accepted.",
                ),
            )
        ),
        Row(
            (
                one(
                    "Tokens per step",
                    "short",
                    f"1 + {rate('ray_vllm_spec_decode_num_accepted_tokens_total', 'ReplicaId', OF_REPLICA_ID)} / "
                    f"{rate('ray_vllm_spec_decode_num_drafts_total', 'ReplicaId', OF_REPLICA_ID)}",
                    description="Of one sequence.",
                ),
                Panel(
                    "Drafted and accepted",
                    "short",
                    (
                        Query(rate("ray_vllm_spec_decode_num_draft_tokens_total"), "drafted tokens/s"),
                        Query(rate("ray_vllm_spec_decode_num_accepted_tokens_total"), "accepted tokens/s"),
                    ),
                ),
            )
        ),
    ),
    (REPLICA,),
)


def burn(what: str, budget: str) -> tuple[Query, ...]:
    """How many times faster than it may the budget is spent, in each window."""
    return tuple(Query(f"step:{what}:ratio{window} / {budget}", window) for window in ("5m", "30m", "1h", "6h"))


OBJECTIVES: Final = Dashboard(
    "step-slo",
    "Step: objectives",
    "Error and latency objectives, how fast their budgets are spent, and what fires. The objectives are in "
    "monitoring/rules/recording.yml.",
    (
        Row(
            (
                Panel(
                    "Burn rate: errors",
                    "short",
                    burn("errors", "scalar(step:errors:budget)"),
                    "1: the budget lasts exactly for the period. Alerts: 14.4 in an hour, 6 in six hours.",
                ),
                Panel("Burn rate: time to first token", "short", burn("slow_ttft", "scalar(step:slow_ttft:budget)")),
            )
        ),
        Row(
            (
                one("Failed requests", "percentunit", "step:errors:ratio5m", "failed"),
                one("Late first tokens", "percentunit", "step:slow_ttft:ratio5m", "late"),
                one("Refused: full", "percentunit", "step:refused:ratio5m", "refused"),
            )
        ),
        Row(
            (
                one(
                    "Budget left: errors",
                    "percentunit",
                    "clamp_min(1 - step:errors:ratio3d / scalar(step:errors:budget), 0)",
                    "of three days",
                ),
                one(
                    "Budget left: time to first token",
                    "percentunit",
                    "clamp_min(1 - step:slow_ttft:ratio3d / scalar(step:slow_ttft:budget), 0)",
                    "of three days",
                ),
                one(
                    "Alerts",
                    "short",
                    'sum by (alertname, alertstate) (ALERTS{alertname=~"Step.*"})',
                    "{{alertname}} {{alertstate}}",
                ),
            )
        ),
    ),
)

DASHBOARDS: Final = (FLEET, ONE_REPLICA, ONE_KEY, MTP, OBJECTIVES)
