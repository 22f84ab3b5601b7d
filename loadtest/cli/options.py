"""All flags of all commands, and the frozen specifications that are built from them."""

from __future__ import annotations

import argparse
import os
from argparse import BooleanOptionalAction
from typing import Any

from loadtest.api.requests import Api
from loadtest.cli import flags as check
from loadtest.cli.flags import FlagGroup, flag, positive, seconds, whole
from loadtest.commands.run import RunSpec
from loadtest.commands.search import SearchSpec
from loadtest.commands.selftest import SelfTestSpec
from loadtest.data.datasets import DATASETS
from loadtest.data.prompt import AgentsSpec, DatasetSpec
from loadtest.data.session_ids import SessionIds
from loadtest.errors import UsageError
from loadtest.fleet.poller import FleetSpec
from loadtest.load.plan import TargetSpec
from loadtest.load.schedule import LoadSpec
from loadtest.metrics.reference_results import PRESETS
from loadtest.metrics.summary import SummarySpec
from loadtest.mock.answers import MockConfig
from loadtest.report.files import OutputSpec

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
FAULTS = ("full", "unavailable", "error", "event", "cut", "short", "garbage", "silent")

PRESET = FlagGroup(None, RunSpec, (
    flag("preset", "--preset", choices=sorted([*PRESETS, "agents"]),
         help="the published benchmark, or sessions of coding agents; other flags override it"),
    flag("quick", "--quick", action="store_true", help="with --preset: three waves instead of sixteen"),
))  # fmt: skip
TARGET = FlagGroup("server", TargetSpec, (
    flag("url", "--url", "--base-url", help="base URL (default http://127.0.0.1:8000)"),
    flag("model", "--model", help="served model name (default: the first of /v1/models)"),
    flag("api", "--api", choices=[api.value for api in Api], default=None, help="protocol (default chat)"),
    flag("api_key", "--api-key", help="bearer token (default: OPENAI_API_KEY, if set)"),
    flag("headers", "--header", nargs="+", action="extend", type=check.pair, metavar="NAME=VALUE", help="more headers"),
    flag("verify", "--insecure", action="store_false", help="do not verify the server's certificate"),
    flag("ca_file", "--ca-file", help="PEM file of the CA that signed the server's certificate"),
    flag("tokenizer", "--tokenizer", help="model folder or tokenizer.json (default: the model's root, if local)"),
    flag("timeout_s", "--timeout", type=positive, metavar="S", help="time limit of a request"),
    flag("reuse_connections", "--new-connections", action="store_false", help="open a connection for every request"),
))  # fmt: skip
DATA = FlagGroup("data", DatasetSpec, (
    flag("dataset", "--dataset-name", choices=sorted(DATASETS), help="prompts; random is vLLM's own"),
    flag("file", "--dataset-path", help="file of the data set: JSONL, ShareGPT JSON, text, or a mix"),
    flag("num_prompts", "--num-prompts", type=whole(1), help="requests (default: 1000, or what the load needs)"),
    flag("input_len", "--input-len", "--random-input-len", type=whole(1), help="prompt tokens"),
    flag("output_len", "--output-len", "--random-output-len", type=whole(1), help="answer tokens"),
    flag("range_ratio", "--range-ratio", "--random-range-ratio", type=check.ratios, default=(0.0,), metavar="RATIO",
         help="relative spread of the lengths: one number, or INPUT,OUTPUT (default 0)"),
    flag("prefix_len", "--prefix-len", "--random-prefix-len", type=whole(0), help="tokens of a shared prefix"),
    flag("prefixes", "--prefixes", type=whole(1), help="number of different shared prefixes"),
    flag("turns", "--turns", type=whole(1), help="turns of a session"),
    flag("think_s", "--think-time", type=seconds, metavar="S", help="pause before the next turn of a session"),
    flag("session_header", "--session-header", help="header with the session's ID"),
    flag("images", "--images", type=whole(1), help="images per prompt"),
    flag("image_size", "--image-size", type=check.image_size, metavar="WxH", help="pixels (default 448x448)"),
    flag("seed", "--seed", type=whole(0, 2**32 - 1), help="the same seed gives the same prompts"),
    flag("ignore_eos", "--ignore-eos", action=BooleanOptionalAction, help="force answers of full length"),
    flag("extra_body", "--extra-body", type=check.json_object, metavar="JSON", help="fields added to every request"),
    *(flag(name, f"--{name.replace('_', '-')}", type=int if name == "top_k" else float, help=argparse.SUPPRESS)
      for name in SAMPLING),
))  # fmt: skip
AGENTS = FlagGroup("sessions of coding agents (--preset agents, --dataset-name agents)", AgentsSpec, (
    flag("scale", "--agents-scale", type=positive, help="multiplies all token counts, for small machines"),
    flag("total_sessions", "--total-sessions", type=whole(1), help="sessions (default: as many as the load needs)"),
    flag("session_ids", "--session-ids", choices=[kind.value for kind in SessionIds],
         help="how a session names itself: as this CLI, the CLIs in turn, by prompt_cache_key only, or not at all"),
    flag("programs", "--agent-programs", type=whole(1), help="different system prompts"),
    flag("child_ratio", "--child-ratio", type=check.ratio, help="share of sessions that start child agents"),
))  # fmt: skip
LOAD = FlagGroup("load", LoadSpec, (
    flag("concurrency", "--max-concurrency", "--sessions", type=whole(1),
         help="closed loop: requests at a time, or sessions, which have one request at a time; open loop: a cap"),
    flag("rate", "--request-rate", type=positive, help="open loop: requests per second"),
    flag("burstiness", "--burstiness", type=positive, help="1 is Poisson, less is burstier, inf is constant"),
    flag("phases", "--phases", help="open loop in phases, e.g. '30s@2,60s@2-8,10s@20,60s@2'"),
    flag("trace", "--trace", help="JSONL trace with timestamps and lengths: sets data and load"),
    flag("trace_speed", "--trace-speed", type=positive, help="replay a trace this many times as fast"),
    flag("duration_s", "--duration", type=positive, metavar="S", help="start no request after this time"),
    flag("warmup", "--num-warmups", type=whole(0), help="requests before the run, with other prompts"),
    flag("workers", "--workers", type=check.worker_count, metavar="N", help="client processes (default auto)"),
))  # fmt: skip
FLEET = FlagGroup("fleet", FleetSpec, (
    flag("dashboard", "--ray-dashboard", metavar="URL", help="show replicas and scaling, e.g. from http://head:8265"),
    flag("token", "--ray-token", help="bearer token of Ray's dashboard (default: RAY_AUTH_TOKEN, if set)"),
    flag("server_metrics", "--server-metrics", action=BooleanOptionalAction, help="read the server's own /metrics"),
    flag("events", "--at", action="append", type=check.timed_command, metavar="S:COMMAND",
         help="run a shell command S seconds into the run; repeatable"),
    flag("access_logs", "--access-log", nargs="+", metavar="FILE",
         help="logs of this project's ingress, for the replica of each request, where the response does not name it"),
))  # fmt: skip
SUMMARY = FlagGroup("metrics", SummarySpec, (
    flag("percentiles", "--metric-percentiles", type=check.percentiles, help="default 50,90,95,99"),
    flag("goodput_ms", "--goodput", nargs="*", type=check.goodput_limit, metavar="METRIC:MS",
         help="as in vLLM: ttft, tpot, e2el"),
    flag("window_s", "--window-s", type=positive, metavar="S", help="sessions of agents: figures for each S seconds"),
    flag("slo", "--slo", type=check.bounds_text, help="objectives, e.g. 'ttft_p99<3s,tpot_p99<30ms'"),
))  # fmt: skip
OUTPUT = FlagGroup("output", OutputSpec, (
    flag("assertions", "--assert", action="append", type=check.bounds_text, metavar="EXPR", help="exit 1 if missed"),
    flag("json", "--json", help="result file, which vLLM's tools read, too"),
    flag("csv", "--csv", help="one line per request"),
    flag("md", "--md", help="summary in Markdown"),
    flag("html", "--html", help="report with plots in one offline page"),
    flag("detailed", "--save-detailed", action="store_true", help="keep per-request lists in the JSON file"),
    flag("keep_text", "--keep-text", action="store_true", help="keep the answers' text, too"),
    flag("label", "--label", help="name of this run in reports"),
    flag("metadata", "--metadata", nargs="*", type=check.pair, metavar="KEY=VALUE", help="kept in the result file"),
    flag("live", "--live", action=BooleanOptionalAction, help="live view (default: on a terminal)"),
    flag("quiet", "--quiet", action="store_true", help="show no progress"),
))  # fmt: skip
SEARCH = FlagGroup("search", SearchSpec, (
    flag("what", "--what", choices=["concurrency", "rate"], help="what to raise"),
    flag("low", "--from", type=positive, help="lowest load (default 1, or 0.5 per second)"),
    flag("high", "--to", type=positive, help="highest load (default 1024, or 256 per second)"),
    flag("step_requests", "--step-requests", type=whole(0), help="per step (default: 4 waves or 20 s, at least 32)"),
    flag("pause_s", "--pause", type=seconds, metavar="S", help="pause between steps"),
))  # fmt: skip
COMPARE = FlagGroup(None, None, (
    flag("md", "--md", help="write the comparison as Markdown, too"),
))  # fmt: skip
SELFTEST = FlagGroup(None, SelfTestSpec, (
    flag("streams", "--streams", type=check.stream_counts, help="default 32,128,512,1024"),
    flag("chunks", "--chunks", type=whole(2), help="chunks per stream; 50 take a second"),
    flag("workers", "--workers", type=whole(1, check.MAX_WORKERS), help="client processes"),
    flag("against", "--against", metavar="COMMAND", help="another client, run as COMMAND URL STREAMS CHUNKS"),
    flag("rounds", "--rounds", type=whole(1), help="number of measurements whose medians are shown"),
    flag("json", "--json", help="result file"),
))  # fmt: skip
MOCK = FlagGroup(None, MockConfig, (
    flag("port", "--port", type=whole(0, check.MAX_PORT), default=8000, help="0 for a free one"),
    flag("first_s", "--first-ms", type=check.milliseconds, help="time to the first token (default 50)"),
    flag("gap_s", "--gap-ms", type=check.milliseconds, help="time between chunks (default 20)"),
    flag("tokens_per_chunk", "--tokens-per-chunk", type=whole(1), help="tokens in each event"),
    flag("model", "--model", help="served model name"),
    flag("root", "--root", help="the model's root in /v1/models"),
    flag("api_key", "--api-key", help="require this key"),
    flag("max_inflight", "--max-inflight", type=whole(1), help="more requests wait (default: no limit)"),
    flag("replicas", "--replicas", type=whole(0), help="replicas with a prefix cache each; 0: neither"),
    flag("routing", "--routing", choices=["session", "round-robin"], help="how one of them is chosen"),
    flag("fail_every", "--fail-every", type=whole(0), help="apply --fault to every n-th request; 0: to none"),
    flag("fault", "--fault", choices=["", *FAULTS], help="how these requests fail"),
))  # fmt: skip


def run_spec(args: argparse.Namespace) -> RunSpec:
    """What `run` and `search` share."""
    return RunSpec(target_spec(args), data_spec(args), load_spec(args), output_spec(args))


def target_spec(args: argparse.Namespace) -> TargetSpec:
    """The server, with the headers that its API needs."""
    api, headers = Api(args.api), dict(args.headers)
    key = args.api_key or os.environ.get("OPENAI_API_KEY")
    if key:
        headers.setdefault("Authorization", f"Bearer {key}")
    if api is Api.MESSAGES:
        headers |= {"x-api-key": key} if key and "x-api-key" not in headers else {}
        headers.setdefault("anthropic-version", "2023-06-01")
    return TargetSpec(**TARGET.values(args) | {"api": api, "headers": headers})


def data_spec(args: argparse.Namespace) -> DatasetSpec:
    """The prompts; sampling parameters go into the body."""
    sampling = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    lengths: dict[str, Any] = {"input_range_ratio": args.range_ratio[0], "output_range_ratio": args.range_ratio[-1]}
    lengths |= {"agents": AgentsSpec(**AGENTS.values(args))}
    return DatasetSpec(**DATA.values(args) | lengths | {"extra_body": sampling | dict(args.extra_body)})


def load_spec(args: argparse.Namespace) -> LoadSpec:
    """The load, of one kind."""
    spec = LoadSpec(**LOAD.values(args))
    if sum([spec.rate < float("inf"), bool(spec.phases), bool(spec.trace)]) > 1:
        raise UsageError("--request-rate, --phases and --trace exclude each other", "Choose one")
    return spec


def fleet_spec(args: argparse.Namespace) -> FleetSpec:
    """The fleet, with the token of Ray's own variable."""
    token = args.token or os.environ.get("RAY_AUTH_TOKEN")
    return FleetSpec(
        **FLEET.values(args) | {"token": token, "events": tuple(args.events), "access_logs": tuple(args.access_logs)}
    )


def output_spec(args: argparse.Namespace) -> OutputSpec:
    """Metrics and files."""
    summary = SummarySpec(**SUMMARY.values(args) | {"goodput_ms": dict(args.goodput_ms)})
    lists = {"assertions": tuple(args.assertions), "metadata": dict(args.metadata)}
    return OutputSpec(**OUTPUT.values(args) | lists | {"summary": summary})
