"""Writes `docs/metrics.md`: our metrics from their declarations in `ingress/metrics.py`, and vLLM's that are looked at
most."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config.profile import ROOT
from serve_app.ingress.metrics import IngressMetrics
from serve_app.protocol.errors import Outcome

PAGE = ROOT / "docs" / "metrics.md"

INTRODUCTION = """\
# Metrics

Written by `python -m serve_app docs` from `serve_app/ingress/metrics.py`.

All of them are on the metrics endpoint that Ray has on every node, without a token; `docs/operations.md` says where,
and which queries to begin with. A counter appears with its first count. Histograms have `_bucket`, `_sum` and `_count`.
Ray adds labels of its own (`NodeAddress`, `WorkerId`, `SessionName` ...).

## Ours

From the ingress replicas: whole requests, as their clients saw them. Serve adds `application`, `deployment` and
`replica`. `route` is a pattern of the routes that are served, or `unserved`; no label comes from a user.
"""

VLLM = {
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

ENGINE = """\
## vLLM's

From the engine replicas, through vLLM's own Ray stat logger: `vllm:x` in vLLM's documentation is `ray_vllm_x` here.
Labels: `ReplicaId`, `model_name`, `engine`. There are more; these answer most questions.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_ours(), "", _outcomes(), "", ENGINE, *_vllm(), ""])


def _ours() -> Iterator[str]:
    yield from ("| metric | labels | |", "| --- | --- | --- |")
    for metric in vars(IngressMetrics()).values():
        about = metric.info
        kind = "histogram" if "boundaries" in about else "counter"
        name = f"ray_{about['name']}{'_total' if kind == 'counter' else ''}"
        labels = ", ".join(f"`{key}`" for key in about["tag_keys"]) or "none"
        yield f"| `{name}` ({kind}) | {labels} | {about['description']} |"


def _outcomes() -> str:
    return "`outcome` is one of " + ", ".join(f"`{outcome.value}`" for outcome in Outcome) + "."


def _vllm() -> Iterator[str]:
    yield from ("| metric | |", "| --- | --- |")
    for name, about in VLLM.items():
        yield f"| `ray_vllm_{name}` | {about} |"
