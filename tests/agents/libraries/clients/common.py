"""What the client scripts share: where the service is, what to ask, and how to report."""

from __future__ import annotations

import json
import os
from typing import Any

SERVICE = os.environ["SERVICE_URL"]
OPENAI = f"{SERVICE}/v1"
MODEL = "step3p7-flash"
KEY = "no-key"

PLAIN = "Say hello plainly."
SUM = "Add 17 and 25."
WEATHER = "What is the weather in Paris?"
COMPARE = "Compare Paris and Oslo."
PERSON = "Describe Ada as JSON."
PERSON_CALL = "Describe Ada with a tool."
TOO_LONG = "word " * 70_000

SKIES = {"Paris": "sunny", "Oslo": "rainy"}
WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def report(**facts: Any) -> None:
    """The script's whole output: one JSON object."""
    print(json.dumps(facts, sort_keys=True))


def failure(error: Exception) -> list[Any]:
    """A library's own exception: its type, the status and the sentence."""
    return [type(error).__name__, getattr(error, "status_code", None), str(error)]
