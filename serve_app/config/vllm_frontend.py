"""vLLM's configuration of a process that renders and parses, and the checks of flags that need no more than it."""

from __future__ import annotations

from argparse import Namespace

from vllm import AsyncEngineArgs
from vllm.config import CacheConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager


def frontend_config(args: Namespace) -> VllmConfig:
    """The configuration of a process that renders and parses but runs no model, and may see no GPU.

    Built from parts, as vLLM's own GPU-less render server does: `create_engine_config` would look for a device, and
    where there is none resolve lower batch limits than the engine's. Quantisation is left out for the same reason.
    The reasoning configuration is what lets a request have a thinking budget: vLLM refuses one without it.
    """
    engine_args = AsyncEngineArgs.from_cli_args(args)
    model = engine_args.create_model_config()
    model.quantization = None
    parallel = ParallelConfig()
    speculative = engine_args.create_speculative_config(target_model_config=model, target_parallel_config=parallel)
    # More than one "API process": vLLM then caches processed images here only. With one, it would send the engine a
    # hash in place of an image it has sent before, and there are many engines.
    parallel._api_process_count = 2  # noqa: SLF001  # vLLM's own launcher sets it the same way
    engine_args._set_default_reasoning_config_args()  # noqa: SLF001  # as `create_engine_config` does: see the docstring
    return VllmConfig(
        model_config=model,
        parallel_config=parallel,
        scheduler_config=SchedulerConfig(
            max_model_len=model.max_model_len,
            is_encoder_decoder=model.is_encoder_decoder,
            max_num_batched_tokens=engine_args.max_num_batched_tokens or SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS,
            max_num_seqs=engine_args.max_num_seqs or SchedulerConfig.DEFAULT_MAX_NUM_SEQS,
            stream_interval=engine_args.stream_interval,
        ),
        speculative_config=speculative,
        logging_config=engine_args.create_logging_config(),
        structured_outputs_config=engine_args.create_structured_outputs_config(),
        reasoning_config=engine_args.reasoning_config,
    )


def check(args: Namespace) -> None:
    """Let vLLM build what it builds of these options before it looks for a device. Raises what vLLM raises.

    For what the ingress builds, and for the limits and parsers that only an engine, or only a request, would refuse.
    """
    frontend_config(args)
    CacheConfig(gpu_memory_utilization=args.gpu_memory_utilization)


def parser_lists(args: Namespace) -> dict[str, list[str]]:
    """The flags that name a parser, with the names that vLLM knows. Plugins are loaded first."""
    AsyncEngineArgs.from_cli_args(args)  # loads plugins, which may bring parsers
    return {
        "reasoning-parser": ReasoningParserManager.list_registered(),
        "tool-call-parser": ToolParserManager.list_registered(),
    }
