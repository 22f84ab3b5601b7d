"""Flags of `vllm serve` that cannot stand in `engine.flags`: another key sets them, or nothing here reads them.

vLLM's launcher, uvicorn and CORS middleware do not run in this service, so their flags would be accepted and do
nothing. A test goes through all front-end flags: a new one of vLLM's is sorted in before it is taken.
"""

from __future__ import annotations

_ORIGINS = "ingress.allowed_origins"

OWNED = {
    "model": "model.source",
    "model-tag": "model.source",
    "served-model-name": "model.served_name",
    "revision": "model.revision",
    "tokenizer-revision": "model.revision",
    "distributed-executor-backend": "replicas.nodes_per_replica",
    "host": "http_options.host in deploy.yaml",
    "port": "http_options.port in deploy.yaml",
    "api-key": "ingress.keys_file",
    "config": "the profile itself",
    "api-server-count": "ingress.min_replicas",
    "headless": "replicas.nodes_per_replica",
    "otlp-traces-endpoint": "tracing.endpoint",
    "allowed-origins": _ORIGINS,
    "allowed-methods": _ORIGINS,
    "allowed-headers": _ORIGINS,
    "allow-credentials": _ORIGINS,
    "sse-keep-alive-interval": "ingress.keep_alive_s",
}
"""Flags that another key of the configuration sets: a value with two sources would contradict itself some day."""

_TLS = "end TLS in front of the service; it serves plain HTTP (docs/operations.md)"
_SERVER = "Ray Serve runs the HTTP server: `http_options` in deploy.yaml"
_LOG = "each request has one log line of the service's own (docs/observability.md)"
_SUPERVISOR = "Ray Serve starts and replaces the engines: `replicas`"
_HTTP_ONLY = "only HTTP is served"
_TOKEN_ROUTES = "routes of tokens only are not served"  # noqa: S105  # no password
_OPENAPI = "of FastAPI's pages, only /openapi.json is served"
_PLUGIN = "only vLLM's launcher reads it; install the parser as a package with the entry point `vllm.general_plugins`"

UNREAD = {
    "ssl-keyfile": _TLS,
    "ssl-certfile": _TLS,
    "ssl-ca-certs": _TLS,
    "ssl-cert-reqs": _TLS,
    "ssl-ciphers": _TLS,
    "enable-ssl-refresh": _TLS,
    "uds": _SERVER,
    "h11-max-incomplete-event-size": _SERVER,
    "h11-max-header-count": _SERVER,
    "root-path": "requests come without a prefix: have the proxy in front take it off",
    "uvicorn-log-level": _LOG,
    "disable-uvicorn-access-log": _LOG,
    "disable-access-log-for-endpoints": _LOG,
    "disable-log-stats": "requests are routed, and engines scaled, by these figures",
    "aggregate-engine-logging": "each replica logs its own engine",
    "enable-request-id-headers": "every answer has `x-request-id`",
    "enable-server-load-tracking": "/load is not served; /status/fleet has the load of each engine",
    "enable-tokenizer-info-endpoint": "/tokenizer_info is not served",
    "disable-fastapi-docs": _OPENAPI,
    "enable-offline-docs": _OPENAPI,
    "tokens-only": _TOKEN_ROUTES,
    "enable-scale-out": _TOKEN_ROUTES,
    "enable-flash-late-interaction": "scores are not served",
    "grpc": _HTTP_ONLY,
    "grpc-port": _HTTP_ONLY,
    "data-parallel-supervisor-port": _SUPERVISOR,
    "dp-supervisor-probe-interval-s": _SUPERVISOR,
    "dp-supervisor-probe-timeout-s": _SUPERVISOR,
    "dp-supervisor-probe-failure-threshold": _SUPERVISOR,
    "tool-parser-plugin": _PLUGIN,
    "reasoning-parser-plugin": _PLUGIN,
}
"""Flags that would have no effect here, and what to do instead."""
