"""The flags of `run` and `search`, by what they are about. `cli/options.py` checks what they say."""

from __future__ import annotations

import argparse
import math

from loadtest.api.requests import Api
from loadtest.cli import vllm_command
from loadtest.cli.options import SAMPLING
from loadtest.cli.values import above_zero, seconds, whole


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Server, protocol, identity."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", "--base-url", help=f"base URL (default {vllm_command.LOCAL})")
    group.add_argument("--model", help="served name (default: the first of /v1/models)")
    group.add_argument("--api", choices=[api.value for api in Api], help="protocol (default chat)")
    group.add_argument("--api-key", default=None, help="bearer token (default: OPENAI_API_KEY, where set)")
    group.add_argument("--header", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="further headers")
    group.add_argument("--insecure", action="store_true", help="do not check the server's certificate")
    group.add_argument("--ca-file", help="PEM file of the CA that signed the server's certificate")
    group.add_argument("--tokenizer", help="model folder or tokenizer.json (default: the model's root, where local)")
    group.add_argument("--timeout", type=above_zero, default=6 * 3600.0, metavar="S", help="longest a request may take")
    group.add_argument("--new-connections", action="store_true", help="a new connection for every request")


def add_data_flags(parser: argparse.ArgumentParser, datasets: list[str]) -> None:
    """Prompts and answers' lengths."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset-name", dest="dataset", choices=datasets, default="random", help="default random: vLLM's own prompts"
    )
    group.add_argument(
        "--dataset-path", dest="data_file", help="file of the data set: JSONL, ShareGPT JSON, text, or a mix"
    )
    group.add_argument(
        "--num-prompts", type=whole(1), default=0, help="requests in all (default: 1000, or what the load needs)"
    )
    group.add_argument(
        "--input-len", "--random-input-len", type=whole(1), default=1024, help="prompt tokens (default 1024)"
    )
    group.add_argument(
        "--output-len", "--random-output-len", type=whole(1), default=128, help="answer tokens (default 128)"
    )
    group.add_argument(
        "--range-ratio", "--random-range-ratio", default="0", help="spread of lengths, one number or INPUT,OUTPUT"
    )
    group.add_argument(
        "--prefix-len", "--random-prefix-len", type=whole(0), default=0, help="tokens that prompts share at their start"
    )
    group.add_argument("--prefixes", type=whole(1), default=10, help="how many different shared prefixes (default 10)")
    group.add_argument("--turns", type=whole(1), default=4, help="turns of a session (default 4)")
    group.add_argument(
        "--think-time", type=seconds, default=0.0, metavar="S", help="pause before a session's next turn"
    )
    group.add_argument("--session-header", default="x-session-id", help="header that names the session")
    group.add_argument("--images", type=whole(1), default=1, help="images a prompt (default 1)")
    group.add_argument("--image-size", default="448x448", metavar="WxH", help="pixels (default 448x448)")
    group.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="same seed, same prompts (default 0)")
    group.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=None, help="force the answer's length"
    )
    group.add_argument("--extra-body", default="{}", metavar="JSON", help="fields added to every request")
    for name in SAMPLING:
        group.add_argument(
            f"--{name.replace('_', '-')}", type=int if name == "top_k" else float, help=argparse.SUPPRESS
        )


def add_load_flags(parser: argparse.ArgumentParser) -> None:
    """Closed loop, open loop, phases, trace."""
    group = parser.add_argument_group("load")
    group.add_argument(
        "--max-concurrency", dest="concurrency", type=whole(1), help="closed loop: requests at a time; open loop: a cap"
    )
    group.add_argument(
        "--request-rate", dest="rate", type=above_zero, default=math.inf, help="open loop: requests per second"
    )
    group.add_argument("--burstiness", type=above_zero, default=1.0, help="gaps: 1 Poisson, <1 bursty, inf constant")
    group.add_argument("--phases", help="open loop in phases, e.g. '30s@2,60s@2-8,10s@20,60s@2'")
    group.add_argument("--trace", help="JSONL trace with timestamps and lengths; sets data and load")
    group.add_argument("--trace-speed", type=above_zero, default=1.0, help="play a trace this much faster")
    group.add_argument("--duration", type=above_zero, default=math.inf, metavar="S", help="start nothing after this")
    group.add_argument(
        "--num-warmups", dest="warmup", type=whole(0), default=0, help="requests before the run, of other prompts"
    )
    group.add_argument(
        "--workers", default="auto", metavar="N", help="client processes (default auto: as many as the load needs)"
    )


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Figures, files, live view."""
    group = parser.add_argument_group("output")
    group.add_argument("--metric-percentiles", dest="percentiles", default="50,90,95,99", help="default 50,90,95,99")
    group.add_argument("--goodput", nargs="*", default=[], metavar="METRIC:MS", help="as vLLM's: ttft, tpot, e2el")
    group.add_argument("--slo", help="objectives, e.g. 'ttft_p99<3s,tpot_p99<30ms'")
    group.add_argument(
        "--assert", dest="assertions", action="append", default=[], metavar="EXPR", help="exit 1 if missed"
    )
    group.add_argument("--json", help="result file that vLLM's tools read too")
    group.add_argument("--csv", help="one line per request")
    group.add_argument("--md", help="summary in Markdown")
    group.add_argument("--html", help="report with plots in one offline page")
    group.add_argument(
        "--save-detailed", dest="detailed", action="store_true", help="keep per-request lists in the JSON file"
    )
    group.add_argument("--keep-text", action="store_true", help="keep the answers' text too")
    group.add_argument("--label", default="", help="name of this run in reports")
    group.add_argument("--metadata", nargs="*", default=[], metavar="KEY=VALUE", help="kept in the result file")
    group.add_argument(
        "--live", action=argparse.BooleanOptionalAction, default=None, help="live view (default: on a terminal)"
    )
    group.add_argument("--quiet", action="store_true", help="no progress at all")


def add_fleet_flags(parser: argparse.ArgumentParser) -> None:
    """Ray's dashboard, metrics, disturbances."""
    group = parser.add_argument_group("fleet")
    group.add_argument(
        "--ray-dashboard", metavar="URL", help="show replicas and scaling from Ray, e.g. http://head:8265"
    )
    group.add_argument("--ray-token", help="bearer token of Ray's dashboard (default: RAY_AUTH_TOKEN, where set)")
    group.add_argument(
        "--server-metrics", action=argparse.BooleanOptionalAction, default=True, help="read the server's own /metrics"
    )
    group.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="S:COMMAND",
        help="run a shell command S seconds into the run; repeatable",
    )
