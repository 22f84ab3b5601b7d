"""Our own routes: the model list in both APIs' formats, the service's description at `/`, and the OpenAPI description.

vLLM's routes that are not served (`routes.py`) are removed from the app here, so that the middleware is not their only
barrier, and the description does not list them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from serve_app.ingress import openapi, routes
from serve_app.protocol.errors import ModelNotFound
from serve_app.router.fleet_state import FleetFacts


@dataclass(frozen=True)
class OwnFacts:
    """Facts that our routes return."""

    model: str
    vllm_version: str
    refused: Callable[[], list[str]] = list
    """Why some engine replicas get nothing, a sentence for each (`router/routing.py`)."""
    fleet: Callable[[], FleetFacts] = lambda: FleetFacts(is_up=True, may_sleep=False)
    """Whether there is an engine, or about when there will be one."""
    started_s: float = field(default_factory=time.time)
    """The model's creation time: it must not change from one request to the next."""


class Service(BaseModel):
    """The answer of `GET /`."""

    model: str
    engine: str
    apis: list[str]
    refused_replicas: list[str] = []
    """Only if there are any: why these replicas get nothing, and what to do."""
    engines: str = ""
    """Only if none is up: whether the next request starts one, and how long that takes."""


def add(app: FastAPI, facts: OwnFacts) -> None:
    """Add our routes, in place of vLLM's where it has the same."""
    app.router.routes[:] = [route for route in app.router.routes if _is_kept(route)]
    _add_models(app, facts)

    @app.get("/", response_model=Service, response_model_exclude_defaults=True, tags=["service"])
    async def root() -> Service:
        """What this is; coding agents probe it with HEAD before they start."""
        return Service(
            model=facts.model,
            engine=f"vllm {facts.vllm_version}",
            apis=["openai", "anthropic"],
            refused_replicas=facts.refused(),
            engines="" if (fleet := facts.fleet()).is_up else fleet.sentence(),
        )

    description = openapi.Description(app)

    @app.get("/openapi.json", include_in_schema=False)
    def describe() -> Response:
        """Every route that is served, with its errors."""
        return Response(description.encoded(), media_type="application/json")


def _is_kept(route: Any) -> bool:
    path = getattr(route, "path", "")
    methods: set[str] = getattr(route, "methods", None) or set()
    ours = (routes.MODELS, "/openapi.json", "/")
    # A parameter of vLLM's stands for itself: `{response_id}` matches as an id would.
    return path not in ours and any(
        (served := routes.find(path, method)) and served.allows(method) for method in methods
    )


def _add_models(app: FastAPI, facts: OwnFacts) -> None:
    async def cards() -> list[dict[str, Any]]:
        listed = (await app.state.openai_serving_models.show_available_models()).model_dump()["data"]
        # vLLM's `created` is the time of the question, its `root` the path of the checkpoint on this machine.
        return [{**card, "created": int(facts.started_s), "root": card["id"]} for card in listed]

    @app.get(routes.MODELS, tags=["models"], responses=openapi.MODEL_LIST)
    async def list_models(
        anthropic_version: str | None = Header(None, description="Asks for the list in Anthropic's shape."),
    ) -> Response:
        """The models that are served, in OpenAI's shape or Anthropic's. Aliases are not listed: each is another name of
        one of these."""
        models = await cards()
        if anthropic_version is None:
            return JSONResponse({"object": "list", "data": models})
        ids = [model["id"] for model in models]
        data = [_as_anthropic(model) for model in models]
        return JSONResponse({"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]})

    @app.get(routes.MODELS + "/{model_id:path}", tags=["models"], responses=openapi.MODEL)
    async def show_model(model_id: str, request: Request) -> Response:
        """One model, by its name or an alias of it."""
        for model in await cards():
            if model["id"] == model_id:
                return JSONResponse(_as_anthropic(model) if "anthropic-version" in request.headers else model)
        raise ModelNotFound(model_id, facts.model)


def _as_anthropic(card: dict[str, Any]) -> dict[str, Any]:
    created = datetime.fromtimestamp(card["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": card["id"], "display_name": card["id"], "created_at": created}
