"""The flags of `run` (shared by `search`) and what they become: one frozen object, checked as a whole."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from loadtest.api import Api
from loadtest.errors import UsageError
from loadtest.prompt import Json

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")


@dataclass(frozen=True)
class TargetOptions:
    """Which server, and as whom."""

    url: str
    model: str | None = None
    api: Api = Api.CHAT
    headers: Mapping[str, str] = field(default_factory=dict)
    verify: bool = True
    ca_file: str | None = None
    tokenizer: str | None = None
    timeout_s: float = 6 * 3600.0
    reuse_connections: bool = True


@dataclass(frozen=True)
class DataOptions:
    """Which prompts."""

    dataset: str = "random"
    file: str | None = None
    num_prompts: int = 0
    """0: as many as the load needs."""
    input_len: int = 1024
    output_len: int = 128
    input_range_ratio: float = 0.0
    output_range_ratio: float = 0.0
    prefix_len: int = 0
    prefixes: int = 10
    turns: int = 4
    think_s: float = 0.0
    images: int = 1
    image_size: tuple[int, int] = (448, 448)
    seed: int = 0
    ignore_eos: bool | None = None
    """None: forced lengths for made-up prompts, as vLLM does."""
    extra_body: Mapping[str, Json] = field(default_factory=dict)
    session_header: str = "x-session-id"


@dataclass(frozen=True)
class LoadOptions:
    """How hard."""

    concurrency: int | None = None
    rate: float = math.inf
    burstiness: float = 1.0
    phases: str | None = None
    trace: str | None = None
    trace_speed: float = 1.0
    duration_s: float = math.inf
    warmup: int = 0
    workers: int = 1

    @property
    def open_loop_asked(self) -> bool:
        """Whether any flag asks for intended times."""
        return self.rate < math.inf or bool(self.phases) or bool(self.trace)


@dataclass(frozen=True)
class FleetOptions:
    """Where to look at the fleet, and what to do to it."""

    dashboard: str | None = None
    token: str | None = None
    server_metrics: bool = True
    events: tuple[tuple[float, str], ...] = ()
    """Seconds after the start and a shell command, such as one that kills a replica."""


@dataclass(frozen=True)
class OutputOptions:
    """What to show and keep."""

    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    goodput_ms: Mapping[str, float] = field(default_factory=dict)
    slo: str | None = None
    assertions: tuple[str, ...] = ()
    json: str | None = None
    csv: str | None = None
    md: str | None = None
    html: str | None = None
    detailed: bool = False
    keep_text: bool = False
    label: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    live: bool | None = None
    quiet: bool = False


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Server, protocol, identity."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", default="http://127.0.0.1:8000", help="base URL (default %(default)s)")
    group.add_argument("--model", help="served name (default: the first of /v1/models)")
    group.add_argument("--api", choices=[api.value for api in Api], default="chat", help="protocol (default chat)")
    group.add_argument("--api-key", default=None, help="bearer token (default: OPENAI_API_KEY, where set)")
    group.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="further header; repeatable")
    group.add_argument("--insecure", action="store_true", help="do not check the server's certificate")
    group.add_argument("--ca-file", help="PEM file of the CA that signed the server's certificate")
    group.add_argument("--tokenizer", help="model folder or tokenizer.json (default: the model's root, where local)")
    group.add_argument("--timeout", type=float, default=6 * 3600.0, metavar="S", help="longest a request may take")
    group.add_argument("--new-connections", action="store_true", help="a new connection for every request")


def add_data_flags(parser: argparse.ArgumentParser, datasets: list[str]) -> None:
    """Prompts and answers' lengths."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=datasets, default="random", help="default random: vLLM's own prompts")
    group.add_argument("--data-file", help="file of the data set: JSONL, ShareGPT JSON, text, or a mix")
    group.add_argument(
        "--num-prompts", type=int, default=0, help="requests in all (default: 1000, or what the load needs)"
    )
    group.add_argument("--input-len", type=int, default=1024, help="prompt tokens (default 1024)")
    group.add_argument("--output-len", type=int, default=128, help="answer tokens (default 128)")
    group.add_argument("--range-ratio", default="0", help="spread of lengths, one number or INPUT,OUTPUT")
    group.add_argument("--prefix-len", type=int, default=0, help="tokens that prompts share at their start")
    group.add_argument("--prefixes", type=int, default=10, help="how many different shared prefixes (default 10)")
    group.add_argument("--turns", type=int, default=4, help="turns of a session (default 4)")
    group.add_argument("--think-time", type=float, default=0.0, metavar="S", help="pause before a session's next turn")
    group.add_argument("--session-header", default="x-session-id", help="header that names the session")
    group.add_argument("--images", type=int, default=1, help="images a prompt (default 1)")
    group.add_argument("--image-size", default="448x448", metavar="WxH", help="pixels (default 448x448)")
    group.add_argument("--seed", type=int, default=0, help="same seed, same prompts (default 0)")
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
    group.add_argument("--concurrency", type=int, help="closed loop: requests at a time; open loop: a cap")
    group.add_argument("--rate", type=float, default=math.inf, help="open loop: requests per second")
    group.add_argument("--burstiness", type=float, default=1.0, help="gaps: 1 Poisson, <1 bursty, inf constant")
    group.add_argument("--phases", help="open loop in phases, e.g. '30s@2,60s@2-8,10s@20,60s@2'")
    group.add_argument("--trace", help="JSONL trace with timestamps and lengths; sets data and load")
    group.add_argument("--trace-speed", type=float, default=1.0, help="play a trace this much faster")
    group.add_argument("--duration", type=float, default=math.inf, metavar="S", help="start nothing after this")
    group.add_argument("--warmup", type=int, default=0, help="requests before the run, of other prompts")
    group.add_argument(
        "--workers", type=int, default=1, help="client processes (default 1, enough for about 500 streams)"
    )


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Figures, files, live view."""
    group = parser.add_argument_group("output")
    group.add_argument("--percentiles", default="50,90,95,99", help="default 50,90,95,99")
    group.add_argument("--goodput", nargs="*", default=[], metavar="METRIC:MS", help="as vLLM's: ttft, tpot, e2el")
    group.add_argument("--slo", help="objectives, e.g. 'ttft_p99<3s,tpot_p99<30ms'")
    group.add_argument(
        "--assert", dest="assertions", action="append", default=[], metavar="EXPR", help="exit 1 if missed"
    )
    group.add_argument("--json", help="result file that vLLM's tools read too")
    group.add_argument("--csv", help="one line per request")
    group.add_argument("--md", help="summary in Markdown")
    group.add_argument("--html", help="report with plots in one offline page")
    group.add_argument("--detailed", action="store_true", help="keep per-request lists in the JSON file")
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


def fleet_options(args: argparse.Namespace) -> FleetOptions:
    """Checked flags about the fleet."""
    events = []
    for item in args.at:
        moment, colon, command = item.partition(":")
        if not colon or not moment.strip().rstrip("s").replace(".", "", 1).isdigit():
            raise UsageError(f"not SECONDS:COMMAND: {item!r}", "Write e.g. --at '30:kill 1234'")
        events.append((float(moment.strip().rstrip("s")), command))
    token = args.ray_token or os.environ.get("RAY_AUTH_TOKEN")
    return FleetOptions(args.ray_dashboard, token, args.server_metrics, tuple(events))


def target_options(args: argparse.Namespace) -> TargetOptions:
    """Checked flags about the server."""
    headers = pairs(args.header, "--header")
    key = args.api_key or os.environ.get("OPENAI_API_KEY")
    if key:
        headers.setdefault("Authorization", f"Bearer {key}")
        if args.api == Api.MESSAGES.value:
            headers.setdefault("x-api-key", key)
    if args.api == Api.MESSAGES.value:
        headers.setdefault("anthropic-version", "2023-06-01")
    return TargetOptions(
        url=args.url,
        model=args.model,
        api=Api(args.api),
        headers=headers,
        verify=not args.insecure,
        ca_file=args.ca_file,
        tokenizer=args.tokenizer,
        timeout_s=args.timeout,
        reuse_connections=not args.new_connections,
    )


def data_options(args: argparse.Namespace) -> DataOptions:
    """Checked flags about prompts."""
    ratios = numbers(args.range_ratio, "--range-ratio")
    width, _, height = args.image_size.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise UsageError(f"not a size: {args.image_size!r}", "Write --image-size 448x448")
    if min(args.input_len, args.output_len) < 1:
        raise UsageError("--input-len and --output-len must be at least 1")
    sampling = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    return DataOptions(
        dataset=args.dataset,
        file=args.data_file,
        num_prompts=args.num_prompts,
        input_len=args.input_len,
        output_len=args.output_len,
        input_range_ratio=ratios[0],
        output_range_ratio=ratios[-1],
        prefix_len=args.prefix_len,
        prefixes=args.prefixes,
        turns=args.turns,
        think_s=args.think_time,
        images=args.images,
        image_size=(int(width), int(height)),
        seed=args.seed,
        ignore_eos=args.ignore_eos,
        extra_body={**sampling, **json_object(args.extra_body, "--extra-body")},
        session_header=args.session_header,
    )


def load_options(args: argparse.Namespace) -> LoadOptions:
    """Checked flags about the load."""
    ways = [args.rate < math.inf, bool(args.phases), bool(args.trace)]
    if sum(ways) > 1:
        raise UsageError("--rate, --phases and --trace exclude each other", "Choose one")
    if args.concurrency is not None and args.concurrency < 1:
        raise UsageError("--concurrency must be at least 1")
    if args.workers < 1 or args.trace_speed <= 0 or args.duration <= 0:
        raise UsageError("--workers, --trace-speed and --duration must be above 0")
    return LoadOptions(
        concurrency=args.concurrency,
        rate=args.rate,
        burstiness=args.burstiness,
        phases=args.phases,
        trace=args.trace,
        trace_speed=args.trace_speed,
        duration_s=args.duration,
        warmup=args.warmup,
        workers=args.workers,
    )


def output_options(args: argparse.Namespace) -> OutputOptions:
    """Checked flags about output."""
    goodput = {}
    for item in args.goodput:
        name, _, limit = item.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not limit.replace(".", "", 1).isdigit():
            raise UsageError(f"not a goodput limit: {item!r}", "Write e.g. --goodput ttft:3000 tpot:30")
        goodput[name] = float(limit)
    return OutputOptions(
        percentiles=tuple(numbers(args.percentiles, "--percentiles")),
        goodput_ms=goodput,
        slo=args.slo,
        assertions=tuple(args.assertions),
        json=args.json,
        csv=args.csv,
        md=args.md,
        html=args.html,
        detailed=args.detailed,
        keep_text=args.keep_text,
        label=args.label,
        metadata=pairs(args.metadata, "--metadata"),
        live=args.live,
        quiet=args.quiet,
    )


def pairs(items: list[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` items."""
    out = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"not NAME=VALUE: {item!r}", f"Write e.g. {flag} name=value")
        out[name.strip()] = value.strip()
    return out


def numbers(text: str, flag: str) -> list[float]:
    """Comma-separated numbers, at least one."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as bad:
        raise UsageError(f"{flag} takes numbers, not {text!r}") from bad


def json_object(text: str, flag: str) -> dict[str, Json]:
    """A JSON object."""
    try:
        found = msgspec.json.decode(text.encode())
    except msgspec.DecodeError as bad:
        raise UsageError(f"{flag} is not JSON: {bad}", f"""Write e.g. {flag} '{{"top_k": 1}}'""") from bad
    if not isinstance(found, dict):
        raise UsageError(f"{flag} must be a JSON object")
    return found
