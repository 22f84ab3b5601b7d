"""vLLM's own API app over our dispatcher. The only importer of vLLM's server internals.

The protocols (chat, completions, responses, messages, tokenise) are vLLM's code, unchanged. What vLLM does not do
(keys, aliases, keep-alive), and which routes are served, is decided in `ingress/middleware.py`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from types import SimpleNamespace

from fastapi import FastAPI
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.middleware.cors import CORSMiddleware
from vllm import __version__ as vllm_version
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.parser import metrics as parser_metrics

from serve_app.config.vllm_frontend import frontend_config
from serve_app.ingress import media, own_routes, responses_api, vllm_errors, vllm_limits
from serve_app.ingress.engine_client import DispatcherFactory, ReplicatedEngineClient
from serve_app.ingress.grammars import structured_outputs
from serve_app.ingress.own_routes import OwnFacts
from serve_app.ingress.requests import service_tier
from serve_app.vllm_patches import answers, chunk_classes, parsers, token_cache

TASKS = ("generate",)


async def build_api(
    args: Namespace, dispatcher_factory: DispatcherFactory, allowed_media_hosts: Sequence[str] = ()
) -> tuple[FastAPI, ReplicatedEngineClient]:
    """vLLM's API app, and its engine client. `allowed_media_hosts`: see `ingress/media.py`."""
    media.use(allowed_media_hosts)
    parsers.keep_tables()
    vllm_errors.patch()
    vllm_limits.patch()
    answers.correct_answers()
    chunk_classes.use_structs()
    token_cache.remember_tokens()
    responses_api.use()
    service_tier.use()
    structured_outputs.use()
    client = ReplicatedEngineClient(frontend_config(args), dispatcher_factory)
    app = build_app(args, TASKS, client.model_config)
    await init_app_state(client, app.state, args, TASKS)
    _drop_unread_middleware(app)
    # vLLM's handler of engine errors sets `should_exit` on its own launcher's server; here Serve decides who exits.
    app.state.server = SimpleNamespace()
    vllm_errors.use(app)
    dispatcher = client.dispatcher
    facts = OwnFacts(args.served_model_name[0], vllm_version, dispatcher.replicas_refused, dispatcher.fleet)
    own_routes.add(app, facts)
    return app, client


def _drop_unread_middleware(app: FastAPI) -> None:
    """Remove CORS, which our middleware does (our own refusals need it too), and vLLM's counters for a `/metrics` that
    is not served here: they took a twentieth of an ingress' time. Our metrics go to Ray (`ingress/metrics.py`), the
    engine's from its replica."""
    unread: tuple[object, ...] = (PrometheusInstrumentatorMiddleware, CORSMiddleware)
    app.user_middleware = [middleware for middleware in app.user_middleware if middleware.cls not in unread]
    app.middleware_stack = None  # built when it is first asked for; `build_app` has done so already
    parser_metrics._tool_call_parser_invocations = None  # noqa: SLF001  # as it is where no parser is configured
