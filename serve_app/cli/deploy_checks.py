"""Checks of deploy.yaml as Serve reads it: its keys, its values, and Serve's options in the environment.

Serve passes over a key that it does not know: `arguments` for `args` would start a service without its keys file.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import get_args, get_origin

import pydantic

from serve_app.cli.check import Check, CheckStatus, failed
from serve_app.cli.machine_checks import SERVE_PORTS
from serve_app.config.deployment import Deployment
from serve_app.config.schema import AppConfig
from serve_app.config.yaml_lines import KeyPath, YamlDocument

CUTS_STREAMS = {
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "120",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "3600",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "inf",
}
"""HAProxy options that end a stream, with Serve's defaults."""
HAPROXY_LINES = "RAY_SERVE_HAPROXY_RETRY_ON"
"""The option by which deploy.yaml writes further lines into HAProxy's configuration."""
REQUEST_TIMEOUT = re.compile(r"^\s*timeout http-request (\d+)s\s*$", re.MULTILINE)
ADOPT = "copy the line from the deploy.yaml of this version"

WHOLE_NUMBERS = {
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": 'seconds, as "3600"',
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": 'seconds, as "3600"',
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": 'seconds, as "3600"',
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": 'bytes, as "134217728"',
    **dict.fromkeys(SERVE_PORTS, 'a port, as "8404"'),
}
"""Options that Serve reads with `int()`, and what to write. A replica or the proxy ends where it cannot."""
NUMBERS = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": 'seconds, as "30"',
    "RAY_SERVE_PORT_QUARANTINE_S": 'seconds, as "3630"',
}
"""The same with `float()`."""


def key_checks(document: YamlDocument) -> Iterator[Check]:
    """No key is unknown to Serve."""
    # Not at the top: it takes a second, for which the other commands need not wait.
    from ray.serve.schema import ServeDeploySchema

    for path, known in _unknown_keys(document.values, ServeDeploySchema, ()):
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        message = f"{document.where(path)}: unknown key `{'.'.join(path)}`; {hint}"
        yield failed("deploy.yaml", message, "change that line: Serve itself would pass over it")


def _unknown_keys(
    value: object, schema: type[pydantic.BaseModel], path: KeyPath
) -> Iterator[tuple[KeyPath, list[str]]]:
    """Each key that the schema does not have, with those that it has."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown_keys(item, schema, (*path, str(number)))
    if not isinstance(value, Mapping):
        return
    for name, inner in value.items():
        here = (*path, str(name))
        field = schema.model_fields.get(str(name))
        if field is None:
            yield here, list(schema.model_fields)
        elif (nested := _schema_of(field.annotation)) is not None:
            yield from _unknown_keys(inner, nested, here)


def _schema_of(annotation: object) -> type[pydantic.BaseModel] | None:
    """The model that a field's value must be; None where it may as well be any mapping."""
    parts = list(_parts_of(annotation))
    models = [part for part in parts if isinstance(part, type) and issubclass(part, pydantic.BaseModel)]
    return models[0] if len(models) == 1 and dict not in parts else None


def _parts_of(annotation: object) -> Iterator[object]:
    yield get_origin(annotation) or annotation
    for part in get_args(annotation):
        yield from _parts_of(part)


def value_checks(deploy: Deployment) -> Iterator[Check]:
    """Serve takes the file's values, and its options that are numbers are some."""
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(copy.deepcopy(dict(deploy.document.values)))
    except pydantic.ValidationError as error:
        for item in error.errors():
            path = tuple(map(str, item["loc"]))
            text = item["msg"].removeprefix("Value error, ")
            message = f"{deploy.where(*path)}: {'.'.join(path) or '(top)'}: {text[:1].lower()}{text[1:]}"
            yield failed("deploy.yaml", message, "change that line: Serve refuses it")
    yield from _number_checks(deploy)


def _number_checks(deploy: Deployment) -> Iterator[Check]:
    for kind, read, options in (("whole number", int, WHOLE_NUMBERS), ("number", float, NUMBERS)):
        for name in sorted(options.keys() & deploy.controller_env.keys()):
            try:
                read(deploy.controller_env[name])
            except ValueError:
                place = deploy.where("controller_options", "runtime_env", "env_vars", name)
                message = f"{place}: {name}: {deploy.controller_env[name]!r} is no {kind}"
                yield failed("deploy.yaml", message, f"write {options[name]}")


def serve_option_checks(deploy: Deployment, config: AppConfig) -> Iterator[Check]:
    """Serve's options in deploy.yaml agree with each other and with the profile."""
    place = deploy.where("controller_options", "runtime_env", "env_vars")
    controller = {name: value for name, value in deploy.controller_env.items() if name.startswith("RAY_SERVE_")}
    application = {name: value for name, value in deploy.application_env.items() if name.startswith("RAY_SERVE_")}
    if controller != application:
        names = sorted(name for name, _ in controller.items() ^ application.items())
        advice = "set the same in `controller_options` and in the application's `runtime_env`"
        yield failed("deploy.yaml", f"{place}: controller and application differ in {', '.join(set(names))}", advice)
        return
    longest = config.replicas.longest_stream_s
    for key, default in CUTS_STREAMS.items():
        if float(controller.get(key, default)) < longest and (key in controller or _has_haproxy(controller)):
            given = controller.get(key, f"not set and {default} by default")
            message = f"{place}: {key} is {given}: it cuts streams shorter than longest_stream_s, {longest:g}"
            yield Check(CheckStatus.WARN, "deploy.yaml", message, f'set it to "{longest:.0f}" or more')
    if _has_haproxy(controller):
        yield from _rolling_checks(place, controller)
    largest = int(controller.get("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", 4 * 1024 * 1024))
    if largest < config.ingress.max_body_bytes:
        message = f"{place}: a message between replicas holds {largest:,} bytes, a request up to max_body_bytes"
        advice = f'RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH: "{2 * config.ingress.max_body_bytes}"'
        yield Check(CheckStatus.WARN, "deploy.yaml", message, advice)


def _has_haproxy(controller: Mapping[str, str]) -> bool:
    return controller.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def _rolling_checks(place: str, controller: Mapping[str, str]) -> Iterator[Check]:
    """The options that keep requests away from stopped ingress replicas (docs/decisions/0013)."""
    lines = controller.get(HAPROXY_LINES, "")
    stays_s = float(controller.get("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "30"))
    if not re.search(r"^\s*option httpclose\s*$", lines, re.MULTILINE):
        message = (
            f"{place}: {HAPROXY_LINES} has no line `option httpclose`: clients that keep their connection get errors"
        )
        yield Check(CheckStatus.WARN, "deploy.yaml", f"{message} after ingress replicas were replaced", ADOPT)
    timeout = REQUEST_TIMEOUT.search(lines)
    if timeout is None or float(timeout[1]) >= stays_s:
        message = f"{place}: {HAPROXY_LINES} needs a line `timeout http-request` of less than {stays_s:g}s"
        why = "a stopping ingress takes requests for so long (RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S)"
        yield Check(CheckStatus.WARN, "deploy.yaml", f"{message}: {why}", ADOPT)
    hard_stop_s = float(controller.get("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "120"))
    quarantine = controller.get("RAY_SERVE_PORT_QUARANTINE_S")
    if quarantine is not None and float(quarantine) < hard_stop_s:
        message = f"{place}: RAY_SERVE_PORT_QUARANTINE_S is {quarantine}: HAProxy may know a port for {hard_stop_s:g} s"
        yield Check(CheckStatus.WARN, "deploy.yaml", f"{message} after its replica is gone", "leave it out")
