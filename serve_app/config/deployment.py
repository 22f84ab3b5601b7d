"""Reads deploy.yaml as far as a start needs it: address, application, its arguments, and Serve's options in the
environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.config import yaml_lines
from serve_app.config.schema import ConfigError
from serve_app.config.yaml_lines import BadYaml, KeyPath, YamlDocument

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

    def where(self, *path: str) -> str:
        """`deploy.yaml:12` for a key of the file."""
        return self.document.where(path)


def read(file: Path) -> Deployment:
    """Read a file. Raises `ConfigError` if it does not exist, is no YAML, or does not have exactly one application."""
    try:
        document = yaml_lines.read(file, file.name)
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file") from error
    except BadYaml as error:
        raise ConfigError(str(error)) from error
    applications = document.values.get("applications")
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], Mapping):
        raise ConfigError(f"{document.where(('applications',))}: applications: expected one application")
    application: Mapping[str, object] = applications[0]
    http = _mapping(document.values, "http_options")
    port = http.get("port", 8000)
    if not isinstance(port, int):
        raise ConfigError(f"{document.where(('http_options', 'port'))}: http_options.port: expected a number")
    prefix: KeyPath = ("applications", "0", "args")
    lines = {path[3:]: line for path, line in document.lines.items() if path[:3] == prefix and len(path) > len(prefix)}
    return Deployment(
        file=file,
        document=document,
        host=str(http.get("host", "0.0.0.0")),  # Serve's own default in a configuration file
        port=port,
        application=str(application.get("name", "default")),
        args=YamlDocument(file.name, _mapping(application, "args"), lines),
        controller_env=_strings(_mapping(document.values, "controller_options", *_ENV)),
        application_env=_strings(_mapping(application, *_ENV)),
    )


def _mapping(values: Mapping[str, object], *path: str) -> Mapping[str, object]:
    for name in path:
        inner = values.get(name)
        values = inner if isinstance(inner, Mapping) else {}
    return values


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
