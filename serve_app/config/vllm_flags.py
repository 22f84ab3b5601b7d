"""vLLM's serve flags: from the configuration to an argument vector, checked by vLLM's own parser.

The only module that imports that parser (0.33 moved it). Nothing here uses a device or loads a model.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from serve_app.config.profile import normalise, read_profile, source_location
from serve_app.config.refused_flags import OWNED, UNREAD
from serve_app.config.schema import AppConfig, ConfigError, FlagValue, flag
from serve_app.config.yaml_lines import YamlDocument

LIMITS = ("max-num-seqs", "max-num-batched-tokens")
"""The limits of a batch. They must be set, for both kinds of process."""

TEMPLATE_KWARGS, EFFORT = "default-chat-template-kwargs", "reasoning_effort"


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
        if name in UNREAD:
            raise BadFlag(f"`{key}` has no effect here: {UNREAD[name]}", key)
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
    from vllm.exceptions import VLLMError

    try:
        namespace = parser.parse_args(list(argv))
        validate_parsed_serve_args(namespace)
    except (_Refused, ValueError, TypeError, VLLMError) as error:
        raise _bad_flag(error, (action.dest for action in parser._actions)) from error  # noqa: SLF001  # as above
    for limit in LIMITS:
        value = getattr(namespace, limit.replace("-", "_"))
        if value is not None and value < 1:  # the ingress would take vLLM's default for 0
            raise BadFlag(f"`{limit}` is {value}; an engine needs 1 or more", limit)
    return namespace


def check_model(namespace: argparse.Namespace) -> None:
    """Let vLLM read the checkpoint's configuration as the engine will, without a device or a weight, and build from
    it and the flags what can be built without them.

    Raises `BadFlag` for flags that do not fit the model or each other, and for names of parsers that vLLM does not
    have. For a hub id it may fetch the model's small files.
    """
    from vllm.exceptions import VLLMError

    from serve_app.config import vllm_frontend

    try:
        for name, known in vllm_frontend.parser_lists(namespace).items():
            wanted = getattr(namespace, name.replace("-", "_"))
            if wanted and wanted not in known:
                near = difflib.get_close_matches(wanted, known, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(known)}"
                raise BadFlag(f"`{name}`: vLLM has no parser {wanted!r}; {hint}", name)
        vllm_frontend.check(namespace)
    except BadFlag:
        raise
    except (ValueError, TypeError, OSError, VLLMError) as error:
        raise _bad_flag(error, vars(namespace)) from error


def check_engine_flags(config: AppConfig, argv: Sequence[str]) -> None:
    """`check_model` of `engine_argv`'s result. Raises `ConfigError` with the line to change."""
    try:
        check_model(parse(argv, serve_parser()))
    except BadFlag as error:
        raise _refusal(config, error) from error


def _bad_flag(error: Exception, options: Iterable[str]) -> BadFlag:
    """vLLM's error, with the flag at fault as far as it names one of its options."""
    text = _first_sentences(error)
    known = set(map(_dashes, options))
    words = re.findall(r"--([a-z0-9-]+)", str(error)) + re.findall(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+", str(error))
    of_class = {"SpeculativeConfig": ["speculative-config"]}.get(getattr(error, "title", ""), [])
    name = next((word for word in map(_dashes, [*of_class, *words]) if word in known), None)
    is_named = name is None or name in _dashes(text)
    return BadFlag(text if is_named else f"`{name}`: {text}", name)


def _dashes(name: str) -> str:
    return name.replace("_", "-")


def _first_sentences(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0]
    if len(lines) > 1 and "validation error" in lines[0]:
        # pydantic's first line counts the errors; then come the field, if it is one's, and the words.
        last = next((number for number, line in enumerate(lines) if " [type=" in line), 1)
        argument = re.match(r"argument --[a-z0-9-]+: ", lines[0])
        text = (argument[0] if argument else "") + ": ".join(lines[1 : last + 1])
    return text.replace("Value error, ", "").split(" [type=")[0].split(". To allow")[0][:300]


def engine_argv(config: AppConfig) -> list[str]:
    """The argument vector of `vllm serve` (without `serve`) for one engine. Raises `ConfigError` in vLLM's own
    words."""
    executor = "ray" if config.replicas.nodes_per_replica > 1 else "mp"
    for limit in LIMITS:
        if flag(config.engine.flags, limit) is None:
            # vLLM's defaults depend on the device that the process sees: engine and front end would disagree.
            place = source_location(config.profile, ("engine", "flags"))
            raise ConfigError(f"{place}: engine.flags.{limit} is not set; give it a number")
    # Anthropic's `thinking: disabled` would otherwise reach the template as "Reasoning: none", which Step was not
    # trained on.
    defaults: dict[str, FlagValue] = {"anthropic-disabled-thinking-effort": "low"}
    parser = serve_parser()
    argv = ["--model", config.model.source, "--served-model-name", config.model.served_name]
    argv += ["--distributed-executor-backend", executor]
    if config.model.revision is not None:
        argv += ["--revision", config.model.revision, "--tokenizer-revision", config.model.revision]
    try:
        argv += argv_of({**defaults, **config.engine.flags, TEMPLATE_KWARGS: _template_kwargs(config)}, parser)
        parse(argv, parser)
    except BadFlag as error:
        raise _refusal(config, error) from error
    return argv


def _template_kwargs(config: AppConfig) -> FlagValue:
    """The flag's values with the configured effort, which would otherwise be lost where the flag is set."""
    asked = flag(config.engine.flags, TEMPLATE_KWARGS) or {}
    if not isinstance(asked, dict):
        raise BadFlag(f"`{TEMPLATE_KWARGS}` is {asked!r}; write a mapping, as in {{name: value}}", TEMPLATE_KWARGS)
    if EFFORT in asked:
        raise BadFlag(f"`{TEMPLATE_KWARGS}`: {EFFORT} is set by `model.default_reasoning_effort`", TEMPLATE_KWARGS)
    return {EFFORT: config.model.default_reasoning_effort, **asked}


def _refusal(config: AppConfig, error: BadFlag) -> ConfigError:
    """The error with the place of its flag: the profile's line, unless deploy.yaml has another value."""
    name = _dashes(error.name or "")
    place = source_location(config.profile, ("engine", "flags", name))
    engine = normalise(read_profile(config.profile, YamlDocument(config.profile, {}, {})).values).get("engine")
    flags = engine.get("flags") if isinstance(engine, Mapping) else None
    if isinstance(flags, Mapping) and flags.get(name) != config.engine.flags.get(name):
        place = "args in deploy.yaml"
    return ConfigError(f"{place}: engine.flags: {error}")
