"""Reads deploy.yaml as far as a start needs it: address, application, its arguments, and Serve's options in the
environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.config import yaml_lines
from serve_app.config.schema import ConfigError
from serve_app.config.yaml_lines import BadYaml, KeyPath, YamlDocument

CANARY_BUILD = "serve_app.canary:build"
"""How the application of a canary is built."""

CANARY_SUFFIX = "-canary"
"""The canary of the application `step` is the application `step-canary`."""

_ENV = ("runtime_env", "env_vars")


@dataclass(frozen=True)
class Deployment:
    """One application in one Serve configuration file."""

    file: Path
    document: YamlDocument
    host: str
    port: int
    application: str
    args: YamlDocument
    """The application's arguments, with their lines in the file."""
    controller_env: Mapping[str, str]
    application_env: Mapping[str, str]
    canary_args: YamlDocument | None = None
    """Those of the canary's application, if the file has one."""

    def where(self, *path: str) -> str:
        """`deploy.yaml:12` for a key of the file."""
        return self.document.where(path)


def read_yaml(file: Path) -> YamlDocument:
    """The file's keys and values as they are. Raises `ConfigError` if it does not exist or is no YAML."""
    try:
        return yaml_lines.read(file, file.name)
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file") from error
    except BadYaml as error:
        raise ConfigError(str(error)) from error


def read(file: Path) -> Deployment:
    """Read a file. Raises `ConfigError` if it does not exist, is no YAML, does not have exactly one application,
    beside which there may be its canary, or has an environment variable that is no string."""
    document = read_yaml(file)
    number, application = _service(document)
    http = _mapping(document.values, "http_options")
    port = http.get("port", 8000)
    if not isinstance(port, int):
        raise ConfigError(f"{document.where(('http_options', 'port'))}: http_options.port: expected a number")
    application_env = [
        _env_vars(document, one, ("applications", str(place))) for place, one in enumerate(_applications(document))
    ]
    return Deployment(
        file=file,
        document=document,
        host=str(http.get("host", "0.0.0.0")),  # Serve's own default in a configuration file
        port=port,
        application=str(application.get("name", "default")),
        args=_args(document, file, number),
        controller_env=_env_vars(document, _mapping(document.values, "controller_options"), ("controller_options",)),
        application_env=application_env[number],
        canary_args=_canary_args(document, file, str(application.get("name", "default"))),
    )


def _applications(document: YamlDocument) -> list[Mapping[str, object]]:
    found = document.values.get("applications")
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _service(document: YamlDocument) -> tuple[int, Mapping[str, object]]:
    """The service's application and its number in the file."""
    found = _applications(document)
    services = [(number, one) for number, one in enumerate(found) if one.get("import_path") != CANARY_BUILD]
    if len(services) != 1 or len(found) > 2:  # the service and its canary
        where = document.where(("applications",))
        raise ConfigError(f"{where}: applications: expected one application, and at most one canary ({CANARY_BUILD})")
    return services[0]


def _canary_args(document: YamlDocument, file: Path, service: str) -> YamlDocument | None:
    for number, one in enumerate(_applications(document)):
        if one.get("import_path") != CANARY_BUILD:
            continue
        if one.get("name") != service + CANARY_SUFFIX:
            where = document.where(("applications", str(number), "name"))
            raise ConfigError(f"{where}: name: the canary of `{service}` is found as `{service}{CANARY_SUFFIX}`")
        if one.get("route_prefix", "/") is not None:
            where = document.where(("applications", str(number), "route_prefix"))
            raise ConfigError(f"{where}: route_prefix: a canary has no endpoint of its own; write `route_prefix: null`")
        return _args(document, file, number)
    return None


def _args(document: YamlDocument, file: Path, number: int) -> YamlDocument:
    prefix: KeyPath = ("applications", str(number), "args")
    lines = {path[3:]: line for path, line in document.lines.items() if path[:3] == prefix and len(path) > len(prefix)}
    return YamlDocument(file.name, _mapping(_applications(document)[number], "args"), lines)


def _mapping(values: Mapping[str, object], *path: str) -> Mapping[str, object]:
    for name in path:
        inner = values.get(name)
        values = inner if isinstance(inner, Mapping) else {}
    return values


def _env_vars(document: YamlDocument, holder: Mapping[str, object], place: KeyPath) -> dict[str, str]:
    """The environment in the `runtime_env` of `holder`, which is at `place` in the document."""
    found: dict[str, str] = {}
    for name, value in _mapping(holder, *_ENV).items():
        if not isinstance(value, str):
            where = document.where((*place, *_ENV, str(name)))
            raise ConfigError(f"{where}: {name}: Serve takes only text for a variable: write it in quotes")
        found[name] = value
    return found
