"""`/status`: the status page with its playground, and `/status/fleet`, which it polls.

The page is static files without a build; they hold no data and load nothing from elsewhere. Names in what it shows come
from clients (request ids, keys, sessions), so its script writes text only, and its policy allows no script in the page.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Annotated, Final

from fastapi import FastAPI, Path
from fastapi.responses import Response

from serve_app.ingress import routes
from serve_app.ingress.fleet_status import FleetStatus
from serve_app.ingress.status_routes import restricted_to
from serve_app.observability.fleet import ReportQuery

FOLDER: Final = FilePath(__file__).parent / "status_page"

FILES: Final = MappingProxyType(
    {
        "page.css": "text/css; charset=utf-8",
        "status.js": "text/javascript; charset=utf-8",
        "playground.js": "text/javascript; charset=utf-8",
    }
)

HEADERS: Final = MappingProxyType(
    {
        # Images of the playground are shown from the data that is sent.
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",  # a new version of the service comes with a new page
    }
)


def add(app: FastAPI, fleet: FleetStatus, operators: tuple[str, ...] = ()) -> None:
    """Add the routes. A key that is not among `operators`, where some are named, sees its own requests and tokens."""
    index = (FOLDER / "index.html").read_bytes()
    files = {name: (FOLDER / name).read_bytes() for name in FILES}

    @app.get(routes.STATUS_PAGE, include_in_schema=False)
    async def show_page() -> Response:
        return Response(index, media_type="text/html; charset=utf-8", headers=dict(HEADERS))

    @app.get("/status/page/{name}", include_in_schema=False)
    async def send_file(name: Annotated[str, Path()]) -> Response:
        if name not in files:
            return Response(status_code=404)
        return Response(files[name], media_type=FILES[name], headers=dict(HEADERS))

    @app.get(routes.FLEET, tags=["status"], response_class=Response)
    async def show_fleet() -> Response:
        """Replicas, ingresses, queue, the last migrations and scale decisions, tokens by key, and slow requests."""
        key = restricted_to(operators)
        answer = await fleet.answer(ReportQuery(key=key, only_key=key is not None))
        return Response(answer, media_type="application/json", headers={"cache-control": "no-store"})
