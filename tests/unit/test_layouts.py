"""Every shipped layout reaches its CUDA graphs, and sets nothing that vLLM warns of."""

from __future__ import annotations

import argparse
import re
import warnings

import pytest

from serve_app.config import vllm_flags
from serve_app.config.profile import load_config, profile_names
from serve_app.config.schema import AppConfig, flag
from serve_app.config.vllm_flags import engine_argv

ON_GPUS = [name for name in profile_names() if load_config({"profile": name}, []).replicas.gpus_per_replica]


def count(config: AppConfig, name: str) -> int:
    value = flag(config.engine.flags, name)
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_full_batch_of_decoding_requests_has_a_cuda_graph(name: str) -> None:
    config = load_config({"profile": name}, [])
    speculative, compilation = (flag(config.engine.flags, key) for key in ("speculative-config", "compilation-config"))
    assert isinstance(speculative, dict)
    assert isinstance(compilation, dict)
    drafts, largest = speculative["num_speculative_tokens"], compilation["max_cudagraph_capture_size"]
    assert isinstance(drafts, int)
    assert isinstance(largest, int)
    assert largest >= count(config, "max-num-seqs") * (1 + drafts)
    assert largest <= count(config, "max-num-batched-tokens"), "vLLM cuts it there"
    assert largest % 16 == 0, "vLLM captures multiples of 16, and would truncate it to one"


@pytest.mark.parametrize("name", ON_GPUS)
def test_threads_that_spin_beside_the_step_are_not_started(name: str) -> None:
    """Ray sets `OMP_NUM_THREADS` to a replica's CPUs, unless its environment says otherwise."""
    assert load_config({"profile": name}, []).engine.env["OMP_NUM_THREADS"] == "1"


def deprecated_flags(parser: argparse.ArgumentParser) -> set[str]:
    """What vLLM's own help, or the action behind a flag, calls deprecated."""
    found = set()
    for action in parser._actions:
        text = f"{action.help or ''} {type(action).__name__}"
        if re.search(r"^\W*deprecated|is deprecated|has no effect|Deprecated\w*Action", text, re.IGNORECASE):
            found |= {option.lstrip("-") for option in action.option_strings}
    return found


def test_vllm_tells_which_flags_are_deprecated() -> None:
    assert "disable-cascade-attn" in deprecated_flags(vllm_flags.serve_parser())


@pytest.mark.parametrize("name", profile_names())
def test_no_flag_is_one_that_vllm_has_deprecated(name: str) -> None:
    used = {key.replace("_", "-") for key in load_config({"profile": name}, []).engine.flags}
    assert not used & (deprecated_flags(vllm_flags.serve_parser()) | {"disable-cascade-attn"})


@pytest.mark.parametrize("name", ON_GPUS)
def test_vllms_parser_reads_a_layout_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine_argv(load_config({"profile": name}, []))
