"""Finds the faulty field where vLLM's own checks of a request have crashed on it.

Some of vLLM's validators assume a field's type (`len(messages)`, `tools[0]["type"]`) and run before it has been
checked. Then the fields are checked here, one by one, by the types of vLLM's request model.
"""

from __future__ import annotations

from functools import lru_cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError

from serve_app.ingress.validation_errors import Problem, describe


async def find_problem(request: Request) -> Problem | None:
    """The first field of the request that has the wrong type; None if each has the right one."""
    body_field = getattr(request.scope.get("route"), "body_field", None)
    if body_field is None:
        return None
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return Problem("The request body must be an object.", None)
    problems = [_problem_with(model, body) for model in _models(body_field.field_info.annotation)]
    return problems[0] if problems and all(problem is not None for problem in problems) else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    branches = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [branch for branch in branches if isinstance(branch, type) and issubclass(branch, BaseModel)]


def _problem_with(model: type[BaseModel], body: dict[str, Any]) -> Problem | None:
    for name in model.model_fields:
        if name not in body:
            continue
        try:
            _checker(model, name).validate_python(body[name])
        except ValidationError as error:
            errors = [{**details, "loc": (name, *details["loc"])} for details in error.errors(include_url=False)]
            return describe(errors, body)
        except Exception:  # noqa: BLE001  # a validator of vLLM's that crashes here, too
            return Problem(f"`{name}` is not valid.", name)
    return None


@lru_cache(512)
def _checker(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    annotation: Any = model.model_fields[name].annotation
    return TypeAdapter(annotation)
