"""`python -m serve_app`: starts the service, and offers the commands around it."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.cli import client_env, explain, leave, plan, preflight, serve
from serve_app.cli.check import Check, CheckStatus
from serve_app.config import deployment, fleet, hardware, machine, profile, vllm_device, vllm_flags
from serve_app.config.deployment import Deployment
from serve_app.config.schema import AppConfig, ConfigError
from serve_app.config.vllm_flags import BadFlag, engine_argv
from serve_app.ingress import auth
from serve_app.ingress.auth import BadKeysFile
from serve_app.protocol.service_class import Share
from serve_app.rehearse.setup import add_flags as add_rehearse_flags
from serve_app.simulate.command import add_flags as add_simulate_flags

DEPLOY_FILE = profile.ROOT / "deploy.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 where all is well, 1 where something must be done, 2 for a wrong command line."""
    options = _parser().parse_args(argv)
    # What the libraries log is printed here, in context.
    logging.getLogger("serve_app").setLevel(logging.ERROR)
    try:
        status: int = options.run(options)
    except (ConfigError, BadFlag, BadKeysFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve_app", description="Step-3.7-Flash on Ray Serve and vLLM.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    def with_file(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--file", type=Path, default=DEPLOY_FILE, help="Serve configuration (default: deploy.yaml)")
        return sub

    with_file(command("serve", _serve, "check, start, watch, and stop everything again"))
    with_file(command("preflight", _preflight, "the checks that a start begins with; nothing is started"))
    with_file(command("doctor", _doctor, "the same checks, and how a running service is"))
    planned = command("plan", _plan, "memory of each hardware layout: weights, cache, sessions")
    planned.add_argument("profile", nargs="*", help="names in configs/ or paths (default: all)")
    engine = with_file(command("argv", _argv, "the engine as a `vllm serve` command line"))
    engine.add_argument("--check-model", action="store_true", help="also have vLLM read the model's configuration")
    engine.add_argument("--part", default="", help="a pool's name, or `canary` (default: as the ingresses see it)")
    env = with_file(command("client-env", _client_env, 'what an agent or SDK needs: eval "$(... client-env claude)"'))
    env.add_argument("client", choices=client_env.CLIENTS, help="the program or library")
    env.add_argument("--key", help="API key, where the endpoint asks for one")
    env.add_argument("--url", help="address of the endpoint, if it is not this machine")
    _add_key_flags(command("hash-key", _hash_key, "make an API key; prints it once, and its line for the keys file"))
    _add_explain_flags(with_file(command("explain", _explain, "why a past request took as long as it did")))
    rehearsal = "try everything with dummy weights on this machine's GPUs: start, requests, load, a killed engine"
    add_rehearse_flags(with_file(command("rehearse", _rehearse, rehearsal)))
    leaving = "this node is about to go: have it drained, and wait until it is empty"
    _add_leave_flags(command("leave", _leave, leaving))
    rehearsed = "a trace of requests over a modelled fleet, in virtual time: scaling policies side by side"
    add_simulate_flags(command("simulate", _simulate, rehearsed))
    docs = command("docs", _docs, "write the generated pages of docs/")
    docs.add_argument("--check", action="store_true", help="only say which are not current")
    return parser


def _add_key_flags(hashed: argparse.ArgumentParser) -> None:
    hashed.add_argument("name", help="whose key it is (shown in logs)")
    hashed.add_argument("--requests-per-minute", type=_limit, help="limits of the key, for its line in the file")
    hashed.add_argument("--tokens-per-minute", type=_limit, help="tokens of prompts and of answers")
    hashed.add_argument("--max-concurrent", type=_limit, help="requests at a time")
    hashed.add_argument(
        "--class", dest="service_class", choices=auth.CLASSES, default="standard", help="who goes first"
    )
    hashed.add_argument("--weight", type=_weight, default=1, help="its share against other keys of its class")


def _add_leave_flags(leaving: argparse.ArgumentParser) -> None:
    leaving.add_argument(
        "--deadline-s", type=float, default=leave.DEFAULT_DEADLINE_S, help="when it goes (default 300)"
    )
    leaving.add_argument("--node-id", help="another node, by Ray's id")
    leaving.add_argument("--address", default="auto", help="HOST:PORT of Ray's GCS (default: the Ray of this machine)")


def _add_explain_flags(explained: argparse.ArgumentParser) -> None:
    explained.add_argument("request_id", nargs="?", help="the `x-request-id` of its response (default: the last ones)")
    explained.add_argument("--slowest", type=int, metavar="N", help="the slowest ones instead")
    explained.add_argument("--key", help="those of this API key's owner")
    explained.add_argument(
        "--since", type=_span_s, metavar="SPAN", help="those of the last 30s, 10m or 1h (default: 1h)"
    )
    explained.add_argument("--url", help="address of the endpoint, if it is not this machine")
    explained.add_argument("--api-key", help="API key to ask with, where the endpoint asks for one")
    explained.add_argument("--json", action="store_true", help="for programs")


def _serve(options: argparse.Namespace) -> int:
    return serve.serve(options.file, _say)


def _say(line: str) -> None:
    print(line, flush=True)


def _preflight(options: argparse.Namespace) -> int:
    ready = True
    for check in preflight.checks(options.file, machine.running_ray()):
        _say(str(check))
        ready = ready and check.status is not CheckStatus.FAIL
    _say("\nReady: `make serve`." if ready else "\nNot ready: see the lines marked FAIL.")
    return 0 if ready else 1


def _doctor(options: argparse.Namespace) -> int:
    deploy = deployment.read(options.file)
    endpoint = serve.find_endpoint(deploy)
    refused = serve.refused_replicas(deploy)
    for why in refused:
        _say(str(Check(CheckStatus.FAIL, "versions", why)))
    if endpoint is None and refused:
        return 1
    if endpoint is None:
        _say(f"  {serve.expected_endpoint(deploy).url()} does not answer; what a start would find:\n")
        return _preflight(options)
    _say(f"  {endpoint.url()} answers and serves {endpoint.model}.")
    left = {item.pid: item.command for item in machine.stale_processes()}
    for pid, command in left.items():
        _say(f"  left over from an earlier run: pid {pid} ({command})")
    return 1 if left or refused else 0


def _plan(options: argparse.Namespace) -> int:
    for line in plan.table(options.profile or profile.profile_names()):
        _say(line)
    return 0


def _argv(options: argparse.Namespace) -> int:
    deploy = deployment.read(options.file)
    config = _part_config(deploy, options.part)
    vllm_device.use_no_device()
    argv = engine_argv(config)
    if options.check_model:
        vllm_flags.check_engine_flags(config, argv)
    _say(f"vllm serve {shlex.join(argv)}")
    return 0


def _part_config(deploy: Deployment, name: str) -> AppConfig:
    nodes = [hardware.this_machine()]
    if name == fleet.CANARY and deploy.canary_args is not None:
        return fleet.load(deploy.canary_args, nodes).ingress
    found = fleet.load(deploy.args, nodes)
    configs = {"": found.ingress, **{part.name: part.config for part in found.parts}}
    if name not in configs:
        raise ConfigError(f"{deploy.file.name}: there is no part `{name}`; there is {', '.join(filter(None, configs))}")
    return configs[name]


def _client_env(options: argparse.Namespace) -> int:
    endpoint = serve.expected_endpoint(deployment.read(options.file))
    setup = client_env.setup_for(options.client, endpoint, options.url or endpoint.url(), options.key)
    print(f"# {setup.instruction}", file=sys.stderr)  # not with the text, which goes into a shell or a file
    _say(setup.text)
    return 0


def _limit(text: str, most: int = auth.MAX_LIMIT) -> int:
    number = int(text)
    if not 0 < number <= most:
        raise argparse.ArgumentTypeError(f"must be from 1 to {most}")
    return number


def _span_s(text: str) -> float:
    try:
        return explain.span_s(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _explain(options: argparse.Namespace) -> int:
    deploy = deployment.read(options.file)
    url = options.url or serve.expected_endpoint(deploy).url()
    filters = {"slowest": options.slowest, "key": options.key, "since_s": options.since}
    try:
        answer = explain.ask(url.rstrip("/"), options.api_key, options.request_id, **filters)
    except explain.CannotExplain as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _say(explain.as_json(answer) if options.json else explain.render(answer, one_request=bool(options.request_id)))
    return 0


def _weight(text: str) -> int:
    return _limit(text, auth.MAX_WEIGHT)


def _hash_key(options: argparse.Namespace) -> int:
    key = auth.new_key()
    limits = auth.KeyLimits(options.requests_per_minute, options.tokens_per_minute, options.max_concurrent)
    line = auth.line_for(options.name, key, limits, Share(auth.CLASSES[options.service_class], options.weight))
    _say(f"key (shown once, give it to {options.name}):\n  {key}\n")
    _say(f"line for the keys file (`ingress.keys_file`):\n  {line}")
    return 0


def _rehearse(options: argparse.Namespace) -> int:
    from serve_app.rehearse import command

    return command.run(options, _say)


def _leave(options: argparse.Namespace) -> int:
    return leave.leave(options.address, options.node_id, options.deadline_s, _say)


def _simulate(options: argparse.Namespace) -> int:
    from serve_app.simulate import command

    return command.run(options, _say)


def _docs(options: argparse.Namespace) -> int:
    from serve_app.cli import docs, docs_metrics

    pages = {
        profile.ROOT / "docs" / "configuration.md": docs.configuration_page(),
        docs_metrics.METRICS_PAGE: docs_metrics.metrics_page(),
    }
    stale = [page for page, text in pages.items() if not page.is_file() or page.read_text(encoding="utf-8") != text]
    if options.check:
        for page in stale:
            _say(f"{page.name} is not current: run `python -m serve_app docs`")
        return 1 if stale else 0
    for page in stale:
        page.parent.mkdir(exist_ok=True)
        page.write_text(pages[page], encoding="utf-8")
        _say(f"wrote {page.relative_to(profile.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
