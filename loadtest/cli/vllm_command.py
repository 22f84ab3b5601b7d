"""What a command for `vllm bench serve` says otherwise than ours: its flags become ours before anything is checked.

Most flags have vLLM's names. These have no counterpart: where the server is (`--host`, `--port`, `--endpoint`), which
protocol it speaks (`--backend`), the model's two names, and where the result goes (`--save-result` and its kin).
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Final

from loadtest.api.requests import BACKENDS, PATHS, Api
from loadtest.cli.values import LAST_PORT, above_zero, whole
from loadtest.errors import UsageError

LOCAL: Final = "http://127.0.0.1:8000"

APIS: Final = {
    BACKENDS[Api.CHAT]: Api.CHAT,
    **dict.fromkeys((BACKENDS[Api.COMPLETIONS], "openai-completions", "vllm"), Api.COMPLETIONS),
}
"""By vLLM's names. Its own default is `openai`; ours stays the chat API."""

METRICS: Final = ("ttft", "tpot", "itl", "e2el")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that only a command for vLLM has."""
    group = parser.add_argument_group("as `vllm bench serve` has them")
    group.add_argument("--backend", choices=sorted(APIS), help="the same as --api, by vLLM's names")
    group.add_argument("--endpoint", help="path of the API, with what a proxy puts before it")
    group.add_argument("--host", help="with --port instead of --url")
    group.add_argument("--port", type=whole(1, LAST_PORT), help="with --host instead of --url")
    group.add_argument("--served-model-name", help="name to ask for, where --model is the tokenizer's folder")
    group.add_argument("--save-result", action="store_true", help="write the result file, named as vLLM names it")
    group.add_argument("--result-dir", help="folder for it")
    group.add_argument("--result-filename", help="its name")
    group.add_argument("--percentile-metrics", help="taken, without effect: all of them are shown")
    group.add_argument("--disable-tqdm", action="store_true", help="no live view")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="taken, without effect: no model code runs here"
    )
    group.add_argument("--ready-check-timeout-sec", type=above_zero, help=argparse.SUPPRESS)


def translate(args: argparse.Namespace, now: datetime) -> None:
    """Turn them into ours, in place. Raises `UsageError` for what contradicts itself; `now` is for a file's name."""
    if args.backend is not None:
        api = APIS[args.backend]
        if args.api not in (None, api.value):
            raise UsageError(f"--api {args.api} is not --backend {args.backend}", "Give one of them")
        args.api = api.value
    args.api = args.api or Api.CHAT.value
    args.url = _url(args)
    if args.percentile_metrics is not None:
        unknown = [name for name in args.percentile_metrics.split(",") if name not in METRICS]
        if unknown:
            raise UsageError(f"--percentile-metrics has no {unknown[0]!r}", f"Choose from {','.join(METRICS)}")
    if args.tokenizer is None and args.model is not None and (Path(args.model) / "tokenizer.json").is_file():
        args.tokenizer = args.model
    args.model = args.served_model_name or args.model
    if args.disable_tqdm and args.live is None:
        args.live = False
    if (args.result_dir or args.result_filename) and not args.save_result:
        raise UsageError("--result-dir and --result-filename name a file that is not asked for", "Add --save-result")
    if args.save_result and args.json is None:
        args.json = str(Path(args.result_dir or ".") / (args.result_filename or _file_name(args, now)))


def _url(args: argparse.Namespace) -> str:
    given: str | None = args.url
    if args.host is not None or args.port is not None:
        if given is not None:
            raise UsageError("--host and --port are instead of --url", "Leave one of them out")
        host = args.host or "127.0.0.1"
        given = f"http://{f'[{host}]' if ':' in host else host}:{args.port or 8000}"
    url = given or LOCAL
    if args.endpoint is None:
        return url
    path = PATHS[Api(args.api)]
    if not args.endpoint.endswith(path):
        raise UsageError(
            f"--endpoint {args.endpoint} is not the {args.api} API's, which ends with {path}",
            "Choose the protocol with --backend or --api",
        )
    before: str = args.endpoint.removesuffix(path)
    return url.rstrip("/") + before


def _file_name(args: argparse.Namespace, now: datetime) -> str:
    at_a_time = f"-concurrency{args.concurrency}" if args.concurrency else ""
    label = args.label or args.backend or BACKENDS[Api(args.api)]
    model = (args.model or "model").rstrip("/").split("/")[-1]
    return f"{label}-{args.rate}qps{at_a_time}-{model}-{now:%Y%m%d-%H%M%S}.json"
