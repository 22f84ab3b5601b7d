"""`/status/requests`: the records of past requests of all ingresses, for `python -m serve_app explain` and the page."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, Path, Query
from fastapi.responses import Response

from serve_app.ingress import routes
from serve_app.observability.records import MAX_MATCHES, RecordQuery
from serve_app.observability.search import RecordSearch, encode_answer
from serve_app.protocol.errors import RequestRefused
from serve_app.router.request_context import CURRENT

HOUR_S = 3600.0


def restricted_to(operators: tuple[str, ...]) -> str | None:
    """The key of the current request, if it may see its own requests only."""
    context = CURRENT.get()
    asking = context.key_name if context is not None else None
    return None if asking is None or not operators or asking in operators else asking


def add(app: FastAPI, search: RecordSearch, operators: tuple[str, ...] = ()) -> None:
    """Add the routes. A key that is not among `operators` sees its own requests only; with none named, every key sees
    all."""

    def visible(key: str | None) -> str | None:
        return key if (asking := restricted_to(operators)) is None else asking

    @app.get(routes.REQUESTS, tags=["status"], response_class=Response)
    async def list_requests(
        slowest: Annotated[int, Query(ge=0, le=MAX_MATCHES, description="So many, the slowest first.")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_MATCHES, description="Else so many, the newest first.")] = 20,
        key: Annotated[str | None, Query(description="Only those of this API key's owner.")] = None,
        since_s: Annotated[float, Query(gt=0, description="Only those of so many last seconds.")] = HOUR_S,
    ) -> Response:
        """The last or the slowest requests: where their time went, and why. No prompts, no answers."""
        query = RecordQuery(slowest=slowest, limit=limit, key=visible(key), since_unix_s=time.time() - since_s)
        return Response(encode_answer(await search.find(query)), media_type="application/json")

    @app.get(routes.REQUESTS + "/{request_id:path}", tags=["status"], response_class=Response)
    async def show_request(
        request_id: Annotated[str, Path(description="The `x-request-id` of the response.")],
    ) -> Response:
        """One request: where its time went, and why."""
        found = await search.find(RecordQuery(request_id=request_id, key=visible(None)))
        if not found.records:
            silent = f" {found.silent_ingresses} ingress did not answer; try again." if found.silent_ingresses else ""
            raise RequestRefused(
                f"No request with the id `{request_id[:200]}` is known: each ingress keeps its last ones, and the "
                f"slowest of the last hour, until it stops.{silent}",
                HTTPStatus.NOT_FOUND,
                code="unknown_request",
            )
        return Response(encode_answer(found), media_type="application/json")
