"""What every block of the configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from serve_app.config.yaml_lines import KeyPath


class WrongKey(ValueError):
    """Several keys contradict each other, or one is wrong for reasons outside of it. A refusal names the line of the
    first of `paths` that is set; they begin below the section whose validator raises this."""

    def __init__(self, message: str, *paths: KeyPath) -> None:
        super().__init__(message)
        self.paths = paths


class Section(BaseModel):
    """One block of the configuration: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
