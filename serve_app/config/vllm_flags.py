"""vLLM's serve flags: from the configuration to an argument vector, checked by vLLM's own parser.

The only module that imports that parser (0.33 moved it). Nothing here uses a device or loads a model.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from serve_app.config.profile import source_location
from serve_app.config.schema import AppConfig, ConfigError, FlagValue, flag

OWNED = {
    "model": "model.source",
    "model-tag": "model.source",
    "served-model-name": "model.served_name",
    "revision": "model.revision",
    "tokenizer-revision": "model.revision",
    "distributed-executor-backend": "replicas.nodes_per_replica",
    "host": "http_options.host in deploy.yaml",
    "port": "http_options.port in deploy.yaml",
    "api-key": "ingress.keys_file",
    "config": "the profile itself",
    "api-server-count": "ingress.min_replicas",
    "headless": "replicas.nodes_per_replica",
    "otlp-traces-endpoint": "tracing.endpoint",
}
"""Flags that another key of the configuration sets: a value with two sources would contradict itself some day."""


class BadFlag(ValueError):
    """A flag that vLLM does not have, or a value that it refuses. `name` is the flag at fault, where vLLM says
    which."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class _Refused(Exception):
    """The message that argparse would print before it ends the process."""


def serve_parser() -> argparse.ArgumentParser:
    """vLLM's parser of `vllm serve`, raising where it would end the process."""
    try:
        from vllm.entrypoints.common.cli_args import make_arg_parser  # 0.33
    except ImportError:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser  # 0.32
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # untyped base
        def error(self, message: str) -> None:
            raise _Refused(message)

    parser: argparse.ArgumentParser = make_arg_parser(Parser(prog="engine.flags", add_help=False))
    return parser


def argv_of(flags: Mapping[str, object], parser: argparse.ArgumentParser) -> list[str]:
    """`--name value` for each flag; `true` and `false` as vLLM spells them, lists and mappings as JSON or repeated
    values.

    Raises `BadFlag` for an unknown or owned name.
    """
    actions = {
        option.removeprefix("--"): action
        for action in parser._actions  # noqa: SLF001  # argparse offers no public list of its options
        for option in action.option_strings
        if option.startswith("--")
    }
    argv: list[str] = []
    for key, value in flags.items():
        name = key.replace("_", "-")
        if name in OWNED:
            raise BadFlag(f"`{key}` is set by `{OWNED[name]}`, not here", key)
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1, cutoff=0.6)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise BadFlag(f"unrecognized arguments: --{name}{hint}", key)
        argv += _words(name, actions[name], value)
    return argv


def _words(name: str, action: argparse.Action, value: object) -> list[str]:
    option = f"--{name}"
    if value is None:
        return []
    if isinstance(value, bool) and action.nargs == 0:
        if value:
            return [option]
        for negative in _negatives(name):
            if negative in action.option_strings:
                return [negative]
        if action.default is not False:  # None: vLLM decides later, and may decide for it
            raise BadFlag(f"`{name}: false` cannot be passed to vLLM: it has no --no-{name}", name)
        return []
    if isinstance(value, bool):
        return [option, str(value).lower()]
    if isinstance(value, Mapping):
        return [option, json.dumps(value)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        words = [json.dumps(item) if isinstance(item, Mapping) else str(item) for item in value]
        return [option, *words] if action.nargs in {"+", "*"} else [option, json.dumps(list(value))]
    # `=` keeps a value that begins with a dash from being read as a flag.
    return [f"{option}={value}"]


def _negatives(name: str) -> Iterator[str]:
    """How vLLM may spell the negation; 0.33 pairs `--enable-x` with `--disable-x`, and no longer lists
    `--no-enable-x`."""
    yield f"--no-{name}"
    for prefix, other in (("enable-", "disable-"), ("disable-", "enable-")):
        if name.startswith(prefix):
            yield f"--{other}{name.removeprefix(prefix)}"


def parse(argv: Sequence[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed options, with vLLM's own quick checks. Raises `BadFlag` in vLLM's own words."""
    try:
        from vllm.entrypoints.common.cli_args import validate_parsed_serve_args  # 0.33
    except ImportError:
        from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args  # 0.32
    try:
        namespace = parser.parse_args(list(argv))
        validate_parsed_serve_args(namespace)
    except (_Refused, ValueError, TypeError) as error:
        named = re.search(r"--([a-z0-9-]+)", str(error))
        raise BadFlag(str(error), named.group(1) if named else None) from error
    return namespace


def check_model(namespace: argparse.Namespace) -> None:
    """Let vLLM read the checkpoint's configuration as the engine will, without a device or a weight.

    Raises `BadFlag` for flags that do not fit the model. For a hub id it may fetch the model's small files.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        AsyncEngineArgs.from_cli_args(namespace).create_model_config()
    except (ValueError, OSError) as error:
        raise BadFlag(_first_sentences(error)) from error


def _first_sentences(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic's first line counts the errors, and the second has the words.
    text = lines[1] if len(lines) > 1 and "validation error" in lines[0] else (lines or [type(error).__name__])[0]
    return text.removeprefix("Value error, ").split(" [type=")[0].split(". To allow")[0][:300]


def engine_argv(config: AppConfig) -> list[str]:
    """The argument vector of `vllm serve` (without `serve`) for one engine. Raises `ConfigError` in vLLM's own
    words."""
    executor = "ray" if config.replicas.nodes_per_replica > 1 else "mp"
    for limit in ("max-num-seqs", "max-num-batched-tokens"):
        if flag(config.engine.flags, limit) is None:
            # vLLM's defaults depend on the device that the process sees: engine and front end would disagree.
            place = source_location(config.profile, ("engine", "flags"))
            raise ConfigError(f"{place}: engine.flags.{limit} is not set; give it a number")
    defaults: dict[str, FlagValue] = {
        "default-chat-template-kwargs": {"reasoning_effort": config.model.default_reasoning_effort},
        # Anthropic's `thinking: disabled` would otherwise reach the template as "Reasoning: none", which Step was not
        # trained on.
        "anthropic-disabled-thinking-effort": "low",
    }
    parser = serve_parser()
    argv = ["--model", config.model.source, "--served-model-name", config.model.served_name]
    argv += ["--distributed-executor-backend", executor]
    if config.model.revision is not None:
        argv += ["--revision", config.model.revision, "--tokenizer-revision", config.model.revision]
    try:
        argv += argv_of({**defaults, **config.engine.flags}, parser)
        parse(argv, parser)
    except BadFlag as error:
        place = source_location(config.profile, ("engine", "flags", error.name or ""))
        raise ConfigError(f"{place}: engine.flags: {error}") from error
    return argv
