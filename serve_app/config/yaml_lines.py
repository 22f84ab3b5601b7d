"""YAML with its line numbers, so that a refusal can name the line to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

KeyPath = tuple[str, ...]


class BadYaml(ValueError):
    """The text is not a YAML mapping; the message names file and line."""


@dataclass(frozen=True)
class YamlDocument:
    """A mapping as it is in `origin` (a file, or a name for another source)."""

    origin: str
    values: Mapping[str, object]
    lines: Mapping[KeyPath, int]

    def where(self, path: KeyPath) -> str:
        """`file:line` of the key, or of the nearest key above it that the file has."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.origin}:{line}"
        return self.origin

    def has(self, path: KeyPath) -> bool:
        """Whether the document has this path."""
        value: object = self.values
        for part in path:
            if isinstance(value, list):
                value = dict(zip(map(str, range(len(value))), value, strict=True))
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        return bool(path)


def read(file: Path, origin: str) -> YamlDocument:
    """Raise `BadYaml` for what is not a mapping with unique keys."""
    return parse(file.read_text(encoding="utf-8"), origin)


def parse(text: str, origin: str) -> YamlDocument:
    """Raise `BadYaml` for what is not a mapping with unique keys."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return YamlDocument(origin, {}, {})
        if not isinstance(root, yaml.MappingNode):
            raise BadYaml(f"{origin}: expected keys and values at the top")
        lines: dict[KeyPath, int] = {}
        _walk(root, (), lines, origin)
        values = loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise BadYaml(f"{origin}{line}: {getattr(error, 'problem', None) or error}") from error
    finally:
        loader.dispose()
    return YamlDocument(origin, values, lines)


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], origin: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            here = (*path, str(index))
            lines[here] = child.start_mark.line + 1
            _walk(child, here, lines, origin)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        line = key.start_mark.line + 1
        # PyYAML silently takes the later of two equal keys: the earlier one would seem to be ignored.
        if here in lines:
            raise BadYaml(f"{origin}:{line}: `{key.value}` is here a second time (first on line {lines[here]})")
        lines[here] = line
        _walk(value, here, lines, origin)
