"""vLLM's serve flags: from a mapping to an argument vector, checked by vLLM's own parser.

The only module that imports that parser (0.33 moved it). Nothing here looks at a device or loads a model.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence

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
}
"""Flags that another key of the configuration sets: two sources for one value would contradict each other some day."""


class BadFlag(ValueError):
    """A flag that vLLM does not have, or a value that it refuses. `name` is the flag at fault, where vLLM says
    which."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class _Refused(Exception):
    """What argparse would have printed before ending the process."""


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
            raise BadFlag(f"`{name}: false` cannot be said to vLLM: it has no --no-{name}", name)
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
    """How vLLM may spell it; 0.33 pairs `--enable-x` with `--disable-x`, and lists no `--no-enable-x` any more."""
    yield f"--no-{name}"
    for prefix, other in (("enable-", "disable-"), ("disable-", "enable-")):
        if name.startswith(prefix):
            yield f"--{other}{name.removeprefix(prefix)}"


def parse(argv: Sequence[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What vLLM makes of it, its own quick checks included. Raises `BadFlag` in vLLM's own words."""
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
    """Have vLLM read the checkpoint's configuration as the engine will, without a device or a weight.

    Raises `BadFlag` for flags that do not go with the model. For a hub id it may fetch the model's small files.
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
