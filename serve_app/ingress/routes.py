"""The served routes: one table for the middleware, the OpenAPI description and the metrics' labels.

Everything else is 404: vLLM's app has administration routes that must not be reachable from outside, some without a
key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from serve_app.ingress.error_format import ApiStyle


@dataclass(frozen=True)
class Route:
    """A served path. `needs_key` is False for routes that load balancers and probes use."""

    methods: frozenset[str]
    pattern: re.Pattern[str]
    api: ApiStyle | None
    """None: OpenAI's, or Anthropic's for a client that sends `anthropic-version`."""
    needs_key: bool = True
    prompt_field: str | None = None
    """The field with the prompt, which the error for a too long prompt names."""
    generates: bool = False
    """Whether its requests have an engine generate an answer: they count for the limits of their key."""

    @property
    def allow(self) -> str:
        """The value of the header `Allow`."""
        head = {"HEAD"} if "GET" in self.methods else set()
        return ", ".join(sorted(self.methods | head | {"OPTIONS"}))

    def allows(self, method: str) -> bool:
        """Whether a request with this method is served; HEAD goes where GET goes."""
        return method in self.methods or (method == "HEAD" and "GET" in self.methods)


def _route(
    methods: str,
    pattern: str,
    api: ApiStyle | None = ApiStyle.OPENAI,
    *,
    needs_key: bool = True,
    prompt: str | None = None,
    generates: bool = False,
) -> Route:
    return Route(frozenset(methods.split()), re.compile(pattern, re.DOTALL), api, needs_key, prompt, generates)


MODELS = "/v1/models"
COMPLETIONS = "/v1/completions"
STATUS_PAGE = "/status"
STATUS_PAGE_FILES = "/status/page/[a-z]+[.](js|css)"
REQUESTS = "/status/requests"
FLEET = "/status/fleet"

SERVED = (
    _route("POST", "/v1/chat/completions", prompt="messages", generates=True),
    _route("POST", COMPLETIONS, prompt="prompt", generates=True),
    _route("POST", "/v1/responses", prompt="input", generates=True),
    _route("GET", "/v1/responses/[^/]+"),
    _route("POST", "/v1/responses/[^/]+/cancel"),
    _route("POST", "/v1/messages", ApiStyle.ANTHROPIC, prompt="messages", generates=True),
    _route("POST", "/v1/messages/count_tokens", ApiStyle.ANTHROPIC, prompt="messages"),
    _route("GET", MODELS, None),
    _route("GET", f"{MODELS}/.+", None),
    _route("POST", "/tokenize", prompt="prompt"),
    _route("POST", "/detokenize"),
    _route("GET", REQUESTS),
    _route("GET", f"{REQUESTS}/.+"),
    _route("GET", FLEET),
    # The page holds no data: it asks for the key that its requests need.
    _route("GET", STATUS_PAGE, needs_key=False),
    _route("GET", STATUS_PAGE_FILES, needs_key=False),
    _route("GET", "/health", needs_key=False),
    _route("GET", "/version", needs_key=False),
    _route("GET", "/openapi.json", needs_key=False),
    _route("GET", "/", needs_key=False),
)


def tidy_path(path: str) -> str:
    """The path without doubled slashes: clients join an address that ends in `/` with paths that begin with one."""
    path = re.sub(r"/{2,}", "/", path)
    return path.rstrip("/") or "/"


def find(path: str, method: str) -> Route | None:
    """The route of a path; of several, the one that takes the method. None: it is not served."""
    matching = [route for route in SERVED if route.pattern.fullmatch(path)]
    return next((route for route in matching if route.allows(method)), None) or next(iter(matching), None)


def api_of(route: Route | None, path: str, headers: dict[str, str]) -> ApiStyle:
    """The API style that the client expects: the route's, or by its headers where both APIs have the path."""
    if route is not None and route.api is not None:
        return route.api
    anthropic = "anthropic-version" in headers or path.startswith("/v1/messages")
    return ApiStyle.ANTHROPIC if anthropic else ApiStyle.OPENAI
