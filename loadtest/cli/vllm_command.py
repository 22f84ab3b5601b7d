"""Accepts commands written for `vllm bench serve`: translates their flags into this tool's before anything is checked.

Most flags have vLLM's names anyway. These differ: the server's address (`--host`, `--port`, `--endpoint`), its protocol
(`--backend`), the two names of the model, and the result file (`--save-result` and others).
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Final

from loadtest.api.requests import BACKENDS, PATHS, Api
from loadtest.cli.flags import MAX_PORT, FlagGroup, flag, positive, whole
from loadtest.errors import UsageError

LOCAL_URL: Final = "http://127.0.0.1:8000"

APIS: Final = {
    BACKENDS[Api.CHAT]: Api.CHAT,
    **dict.fromkeys((BACKENDS[Api.COMPLETIONS], "openai-completions", "vllm"), Api.COMPLETIONS),
}
"""By vLLM's names. vLLM's default is `openai`; here it is the chat API."""

METRICS: Final = ("ttft", "tpot", "itl", "e2el")


FLAGS: Final = FlagGroup("as in `vllm bench serve`", None, (
    flag("backend", "--backend", choices=sorted(APIS), help="the same as --api, by vLLM's names"),
    flag("endpoint", "--endpoint", help="path of the API, with any prefix of a proxy"),
    flag("host", "--host", help="with --port, instead of --url"),
    flag("port", "--port", type=whole(1, MAX_PORT), help="with --host, instead of --url"),
    flag("served_model_name", "--served-model-name", help="name to request, where --model is the tokenizer"),
    flag("save_result", "--save-result", action="store_true", help="write the result file under vLLM's name"),
    flag("result_dir", "--result-dir", help="its folder"),
    flag("result_filename", "--result-filename", help="its name"),
    flag("percentile_metrics", "--percentile-metrics", help="accepted without effect: all metrics are shown"),
    flag("disable_tqdm", "--disable-tqdm", action="store_true", help="no live view"),
    flag("trust_remote_code", "--trust-remote-code", action="store_true", help="accepted without effect"),
    flag("ready_check_timeout_s", "--ready-check-timeout-sec", type=positive, help=argparse.SUPPRESS),
))  # fmt: skip


def translate(args: argparse.Namespace, now: datetime) -> None:
    """Translate the flags in place. Raises `UsageError` for a contradiction. `now` names the result file."""
    if args.backend is not None:
        api = APIS[args.backend]
        if args.api not in (None, api.value):
            raise UsageError(f"--api {args.api} contradicts --backend {args.backend}", "Give one of them")
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
        raise UsageError("--result-dir and --result-filename need --save-result", "Add it")
    if args.save_result and args.json is None:
        args.json = str(Path(args.result_dir or ".") / (args.result_filename or _file_name(args, now)))


def _url(args: argparse.Namespace) -> str:
    url: str = args.url or LOCAL_URL
    if args.host is not None or args.port is not None:
        if args.url is not None:
            raise UsageError("--host and --port replace --url", "Leave one of them out")
        host = args.host or "127.0.0.1"
        url = f"http://{f'[{host}]' if ':' in host else host}:{args.port or 8000}"
    if args.endpoint is None:
        return url
    path = PATHS[Api(args.api)]
    if not args.endpoint.endswith(path):
        raise UsageError(
            f"--endpoint {args.endpoint} does not belong to the {args.api} API, whose path ends with {path}",
            "Choose the protocol with --backend or --api",
        )
    prefix: str = args.endpoint.removesuffix(path)
    return url.rstrip("/") + prefix


def _file_name(args: argparse.Namespace, now: datetime) -> str:
    concurrency = f"-concurrency{args.concurrency}" if args.concurrency else ""
    label = args.label or args.backend or BACKENDS[Api(args.api)]
    model = (args.model or "model").rstrip("/").split("/")[-1]
    return f"{label}-{args.rate}qps{concurrency}-{model}-{now:%Y%m%d-%H%M%S}.json"
