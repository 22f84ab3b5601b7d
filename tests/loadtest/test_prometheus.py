"""Metrics pages: vLLM's names and Ray's, counters that outlive their replica, and malformed lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from loadtest.fleet.prometheus import COUNTERS, MEANS, SUMS, MetricsReader


@pytest.mark.engine
def test_vllm_has_the_metrics_that_are_read() -> None:
    """By their names in vLLM's source; Ray's are the same with `ray_vllm_` (`vllm/v1/metrics/ray_wrappers.py`)."""
    folder = Path(str(importlib.util.find_spec("vllm").origin)).parent / "v1"  # type: ignore[union-attr]
    source = "".join(
        (folder / name).read_text()
        for name in ("metrics/loggers.py", "spec_decode/metrics.py", "metrics/ray_wrappers.py")
    )
    for name in {*SUMS, *MEANS, *COUNTERS}:
        if name.startswith("vllm:"):
            plain = name.removesuffix("_total").removesuffix("_sum").removesuffix("_count")
            assert f'"{plain}"' in source


def test_vllms_own_names_are_read_too() -> None:
    page = 'vllm:num_requests_waiting{engine="0"} 4\nvllm:kv_cache_usage_perc{engine="0"} 0.1\nnum_requests_waiting 9\n'
    values = MetricsReader().update({"a": page, "b": page})
    assert values.get("waiting") == 8
    assert values.get("kv_usage") == pytest.approx(0.1)
    assert values.get("drafts") is None


def test_counters_outlive_their_replica_and_are_counted_once() -> None:
    def page(**drafts: int) -> dict[str, str]:
        lines = [
            f'ray_vllm_spec_decode_num_drafts{suffix}{{ReplicaId="{replica}"}} {count}'
            for replica, count in drafts.items()
            for suffix in ("_total", "")  # Ray writes a counter twice where it is told to
        ]
        return {"node": "\n".join(lines)}

    reader = MetricsReader()
    assert reader.update(page(a=100)).get("drafts") == 0, "what was counted before the run"
    assert reader.update(page(a=130)).get("drafts") == 30
    assert reader.update(page(b=5)).get("drafts") == 35, "a died, b began"
    assert reader.update({"node": ""}).get("drafts") == 35
    assert reader.update(page(a=3, b=6)).get("drafts") == 39, "a began anew"


@pytest.mark.parametrize(
    "line",
    [
        'ray_vllm_num_requests_waiting{ReplicaId="a"} not-a-number', 'ray_vllm_num_requests_waiting{ReplicaId="a" 3',
        'ray_vllm_num_requests_waiting{ReplicaId="a"}', "ray_vllm_num_requests_waiting{ReplicaId=} {",
        'ray_vllm_num_requests_waiting{ReplicaId="a"} NaN', "# TYPE ray_vllm_num_requests_waiting nonsense", "\x00{{",
    ],
)  # fmt: skip
def test_a_malformed_line_costs_only_its_own_sample(line: str) -> None:
    good = 'ray_vllm_num_requests_waiting{ReplicaId="b"} 4'
    assert MetricsReader().update({"node": f"{line}\n{good}\n{line}"}).get("waiting") == 4


def test_what_exporters_add_to_a_line_is_understood() -> None:
    page = """
# HELP ray_vllm_num_requests_waiting Waiting.
# TYPE ray_vllm_num_requests_waiting gauge
# HELP ray_vllm_num_requests_waiting Waiting.
# TYPE ray_vllm_num_requests_waiting gauge
ray_vllm_num_requests_waiting{ReplicaId="a } \\" {",x=""} 2.0 1395066363000
ray_vllm_num_requests_waiting 1e0
ray_vllm_time_to_first_token_seconds_count{ReplicaId="a"} 7 # {trace_id="x"} 0.05
"""
    values = MetricsReader().update({"node": page})
    assert values.get("waiting") == 3
    assert values.get("ttft_count") == 0
