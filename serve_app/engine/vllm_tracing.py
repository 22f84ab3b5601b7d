"""vLLM's own span of a request (`llm_request`): a child of the attempt's span, for sampled requests only.

vLLM makes it in the replica's process at the end of a request (`OutputProcessor.do_tracing`), from the trace headers
that went through its engine core with the request.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serve_app.config.schema import TracingConfig

if TYPE_CHECKING:  # importing vLLM takes seconds; `python -m serve_app.vllm_patches.vllm_api_check` reads these
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.output_processor import OutputProcessor

SERVICE_NAME = "step-serve"
"""What trace viewers call this service, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` say otherwise."""


def name_service() -> None:
    """Give the spans of this process the service's name, unless the environment has one."""
    if "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)


def prepare(tracing: TracingConfig) -> list[str]:
    """The options of vLLM's server for these traces; sets what vLLM and the SDK read from the environment."""
    if tracing.endpoint is None:
        return []
    os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "grpc" if tracing.uses_grpc else "http/protobuf"
    name_service()
    # vLLM also has spans of its start (weights, compilation), which would be traces of their own at every start. Who
    # wants them sets `parentbased_always_on` in `engine.env`.
    os.environ.setdefault("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    return ["--otlp-traces-endpoint", tracing.traces_url]


def trace_sampled_only(output_processor: OutputProcessor) -> None:
    """Leave out the span of a request without trace headers: vLLM would make it, for the sampler to discard it."""
    do_tracing: Callable[..., None] = output_processor.do_tracing

    def sampled_only(output: EngineCoreOutput, *rest: Any) -> None:
        if output.trace_headers:
            do_tracing(output, *rest)

    output_processor.do_tracing = sampled_only
