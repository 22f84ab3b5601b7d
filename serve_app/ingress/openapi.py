"""`/openapi.json`: FastAPI's description of the app, made true.

What FastAPI knows are vLLM's request models. Added here are the answers in both APIs' shapes, streams, keys, and the
errors, which have one shape for each API and not the ones that vLLM's routes and FastAPI name.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec
from fastapi import FastAPI

from serve_app.ingress import routes
from serve_app.ingress.error_format import ApiStyle

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
OPENAI_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANTHROPIC_ERROR: Schema = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "required": ["type", "message"], "properties": {"type": TEXT, "message": TEXT}},
        "request_id": TEXT,
    },
}
OPENAI_MODEL: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": TEXT},
}
ANTHROPIC_MODEL: Schema = {
    "type": "object",
    "required": ["type", "id", "display_name", "created_at"],
    "properties": {"type": {"const": "model"}, "id": TEXT, "display_name": TEXT, "created_at": TEXT},
}


def _one_of(openai: Schema, anthropic: Schema) -> dict[int | str, Schema]:
    content = {"application/json": {"schema": {"anyOf": [openai, anthropic]}}}
    return {200: {"description": "In OpenAI's shape, or Anthropic's for a client of it.", "content": content}}


MODEL = _one_of(OPENAI_MODEL, ANTHROPIC_MODEL)
MODEL_LIST = _one_of(
    {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": OPENAI_MODEL}},
    },
    {
        "type": "object",
        "required": ["data", "has_more", "first_id", "last_id"],
        "properties": {
            "data": {"type": "array", "items": ANTHROPIC_MODEL},
            "has_more": {"type": "boolean"},
            "first_id": TEXT,
            "last_id": TEXT,
        },
    },
)

ERRORS = {
    "400": "The request is not valid.",
    "401": "The API key is missing or not known.",
    "404": "The model, response or path does not exist.",
    "405": "The path takes other methods, which `Allow` lists.",
    "413": "The body is larger than `ingress.max_body_bytes`.",
    "415": "The body's type or encoding is not supported.",
    "429": "The server is full; `Retry-After` says when to come back.",
    "500": "The request failed on the server.",
}
UNAVAILABLE = "No replica of the model is available; `Retry-After` says when to come back."


class Description:
    """The description of an app, made when it is first asked for: half a second and more that most ingresses never
    need, and in which no stream may stand still. So it is for threads."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._encoded: bytes | None = None
        self._making = threading.Lock()

    def encoded(self) -> bytes:
        """The description as JSON."""
        with self._making:
            if self._encoded is None:
                self._encoded = msgspec.json.encode(describe(self._app.openapi()))
            return self._encoded


def describe(schema: Schema) -> Schema:
    """FastAPI's description, with what is missing in it and without what is wrong."""
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).update(OpenAIError=OPENAI_ERROR, AnthropicError=ANTHROPIC_ERROR)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    schema["info"] = {"title": "step-serve", "version": "1", "description": "OpenAI's and Anthropic's APIs, by vLLM."}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            route = routes.find(path, method.upper())
            if route is not None:
                _complete(operation, route, path)
    return schema


def _complete(operation: Schema, route: routes.Route, path: str) -> None:
    api = routes.api_of(route, path, {})
    operation["security"] = [{"bearer": []}, {"x-api-key": []}, {}] if route.needs_key else []
    answers = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
    names = {ApiStyle.OPENAI: "OpenAIError", ApiStyle.ANTHROPIC: "AnthropicError"}
    shape: Schema = {"$ref": f"#/components/schemas/{names[api]}"}
    if route.api is None:
        shape = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names.values()]}
    errors = {**ERRORS, "529" if api is ApiStyle.ANTHROPIC else "503": UNAVAILABLE}
    if not route.needs_key:
        errors = {
            status: text for status, text in errors.items() if status in ("400", "405", "413", "415", "500", "503")
        }
    for status, text in errors.items():
        answers[status] = {"description": text, "content": {"application/json": {"schema": shape}}}
    operation["responses"] = answers
