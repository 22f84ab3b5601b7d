"""Which layout a cluster gets, what it can hold, and the arithmetic of memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serve_app.cli.config_checks import layout_of
from serve_app.config import memory
from serve_app.config.hardware import PROFILE_GPUS, NodeGpus, NoProfileFits, check_fit, choose_profile, describe
from serve_app.config.memory import GB, ReplicaLayout
from serve_app.config.profile import load_config, profile_names
from serve_app.config.schema import AppConfig, ConfigError

HEAD = NodeGpus("head", None, 0, cpus=8)


def node(accelerator: str | None, gpus: int, cpus: float = 128) -> NodeGpus:
    return NodeGpus(f"{accelerator}-{gpus}", accelerator, gpus, cpus)


# ---- auto ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "profile", "room"),
    [
        ([HEAD, node("B200", 4)], "b200-x4", 1),
        ([node("B200", 8), node("B200", 8)], "b200-x4", 4),
        ([node("H200", 8)], "h200-x8", 1),
        ([node("H200", 4)], "h200-x4", 1),
        ([node("H100", 8), node("H100", 8)], "h100-x8", 2),
        ([node("H100", 4)], "h100-x4-fp8", 1),
        ([node("A100", 8)], "a100-x8", 1),
        ([node("A100-80G", 8)], "a100-x8", 1),
        ([node("A100", 8), node("H100", 8)], "h100-x8", 1),
        ([node("GB200", 4)], "b200-x4", 1),
    ],
)
def test_auto_takes_the_best_layout_that_a_node_holds(nodes: list[NodeGpus], profile: str, room: int) -> None:
    choice = choose_profile(nodes)
    assert (choice.profile, choice.room) == (profile, room)
    assert not choice.is_demo


def test_auto_takes_the_demo_only_without_any_gpu_and_says_so_loudly() -> None:
    choice = choose_profile([HEAD, node(None, 0)])
    assert choice.profile == "cpu-demo"
    assert choice.is_demo
    assert "NO GPU" in choice.reason
    assert "NOT Step-3.7-Flash" in choice.reason


@pytest.mark.parametrize("nodes", [[node("T4", 1)], [node("H100", 2)], [node("A100", 4), HEAD], [node(None, 8)]])
def test_auto_never_falls_back_to_the_demo_where_there_are_gpus(nodes: list[NodeGpus]) -> None:
    with pytest.raises(NoProfileFits) as caught:
        choose_profile(nodes)
    told = str(caught.value)
    assert describe(nodes) in told
    assert "8x H100 (h100-x8)" in told
    assert "`profile:` in deploy.yaml" in told


def test_auto_lets_the_fleet_grow_to_what_the_cluster_holds() -> None:
    config = load_config({}, [node("H100", 8), node("H100", 8)])
    assert (config.profile, config.replicas.min, config.replicas.max) == ("h100-x8", 1, 2)


def test_auto_does_not_overrule_what_deploy_yaml_says() -> None:
    config = load_config({"replicas": {"max": 1}}, [node("H100", 8), node("H100", 8)])
    assert config.replicas.max == 1


def test_auto_places_replicas_on_the_gpus_it_found() -> None:
    assert load_config({}, [node("GB200", 4)]).replicas.accelerator_type == "GB200"


def test_auto_picks_only_what_is_shipped_and_the_files_agree() -> None:
    assert {layout.profile for layout in PROFILE_GPUS} <= set(profile_names())
    for layout in PROFILE_GPUS:
        replicas = load_config({"profile": layout.profile}, []).replicas
        assert (replicas.gpus_per_replica, replicas.accelerator_type) == (layout.gpus, layout.accelerators[0])


# ---- pinned profiles -------------------------------------------------------------------------------------------------


def pinned(name: str, **replicas: object) -> AppConfig:
    return load_config({"profile": name, "replicas": replicas}, [])


def test_a_cluster_that_cannot_hold_a_pinned_profile_is_refused_with_both_sides() -> None:
    with pytest.raises(NoProfileFits) as caught:
        check_fit(pinned("h100-x8"), [node("A100", 8), HEAD])
    told = str(caught.value)
    assert "needs 8x H100" in told
    assert "1 node of 8x A100, 1 node without GPUs (8 CPUs)" in told
    assert "room for 0" in told


def test_two_replicas_fit_a_node_with_twice_the_gpus() -> None:
    check_fit(pinned("h100-x4-fp8", min=2, max=2), [node("H100", 8)])
    with pytest.raises(NoProfileFits, match="room for 2"):
        check_fit(pinned("h100-x4-fp8", min=3, max=3), [node("H100", 8)])


def test_four_gpus_on_each_of_two_nodes_are_no_eight_unless_it_may_span_them() -> None:
    nodes = [node("H100", 4), node("H100", 4)]
    with pytest.raises(NoProfileFits):
        check_fit(pinned("h100-x8"), nodes)
    check_fit(pinned("h100-x8", nodes_per_replica=2), nodes)


def test_labels_and_custom_resources_are_looked_at() -> None:
    config = pinned("cpu-demo", label_selector={"zone": "a"}, resources={"slot": 1})
    there = replace(HEAD, labels={"zone": "a"}, resources={"slot": 1.0})
    check_fit(config, [there])
    with pytest.raises(NoProfileFits, match="zone=a"):
        check_fit(config, [replace(there, labels={"zone": "b"})])
    with pytest.raises(NoProfileFits, match="1 slot"):
        check_fit(config, [replace(there, resources={})])


def test_too_few_cpus_are_refused_before_replicas_wait_for_them() -> None:
    args = {"profile": "cpu-demo", "replicas": {"min": 15, "max": 15}, "ingress": {"cpus_per_replica": 1}}
    with pytest.raises(NoProfileFits, match=r"reserves 8\.5 CPUs .* the cluster has 8\. Lower `replicas"):
        check_fit(load_config(args, []), [HEAD])


def test_a_cluster_that_grows_is_not_refused() -> None:
    check_fit(pinned("h100-x8", cluster_grows=True), [HEAD])


# ---- memory ----------------------------------------------------------------------------------------------------------

BF16, FP8 = memory.KNOWN["stepfun-ai/Step-3.7-Flash"], memory.KNOWN["stepfun-ai/Step-3.7-Flash-FP8"]


def layout(gpus: int, accelerator: str = "H100", *, expert_parallel: bool = True) -> ReplicaLayout:
    return ReplicaLayout(gpus, 1, expert_parallel, memory.GPU_BYTES[accelerator], 0.9)


@pytest.mark.parametrize(
    ("shape", "gpus", "accelerator", "weights_gb", "cache_gb"),
    [
        (BF16, 8, "H100", 50.6, 20.5),
        (FP8, 8, "H100", 26.9, 44.3),
        (FP8, 4, "H100", 53.3, 17.85),
        (BF16, 4, "H200", 100.9, 29.0),
        (BF16, 4, "B200", 100.9, 66.4),
    ],
)
def test_a_gpu_holds_its_share_of_the_weights_and_the_rest_is_cache(
    shape: memory.ModelShape, gpus: int, accelerator: str, weights_gb: float, cache_gb: float
) -> None:
    room = memory.memory_capacity(shape, layout(gpus, accelerator))
    assert room.weights_bytes / GB == pytest.approx(weights_gb, abs=0.05)
    assert room.cache_bytes / GB == pytest.approx(cache_gb, abs=0.1)


def test_what_vllm_does_not_split_is_on_every_gpu() -> None:
    """MTP's projections in BF16 and the routers in FP32: 0.4 GB."""
    assert BF16.whole_loaded_bytes / GB == pytest.approx(0.4, abs=0.01)
    eight, four = (memory.memory_capacity(BF16, layout(gpus)).weights_bytes for gpus in (8, 4))
    assert 2 * eight - four == pytest.approx(BF16.whole_loaded_bytes)


def test_data_parallel_ranks_share_the_experts_and_have_a_cache_each() -> None:
    one = memory.memory_capacity(BF16, layout(8))
    two = memory.memory_capacity(BF16, replace(layout(4), data_parallel=2))
    assert two.weights_bytes > one.weights_bytes
    assert two.weights_bytes < memory.memory_capacity(BF16, layout(4)).weights_bytes
    assert two.sessions(32_768) == 2 * two.cache.sessions(32_768)


def test_graphs_and_longer_steps_take_from_the_cache() -> None:
    plain = memory.memory_capacity(BF16, layout(8)).cache_bytes
    assert memory.memory_capacity(BF16, replace(layout(8), captured_tokens=0)).cache_bytes > plain
    assert memory.memory_capacity(BF16, replace(layout(8), captured_tokens=1024)).cache_bytes < plain
    assert memory.memory_capacity(BF16, replace(layout(8), batched_tokens=16_384)).cache_bytes < plain


def test_the_size_that_a_gpu_tells_wins_over_its_name() -> None:
    forty = replace(node("A100", 8), gpu_bytes=40_960 * memory.MIB)
    config = load_config({"profile": "a100-x8"}, [])
    found = layout_of(config, [forty])
    assert found is not None
    assert not memory.memory_capacity(BF16, found).fits()
    known = layout_of(config, [node("A100", 8)])
    assert known is not None
    assert known.gpu_bytes == memory.GPU_BYTES["A100"]


def test_weights_that_do_not_fit_leave_no_room() -> None:
    room = memory.memory_capacity(BF16, layout(4, "H100"))
    assert not room.fits()
    assert room.tokens() == room.sessions(1) == 0


def test_sixteen_gpus_hold_every_kv_head_twice() -> None:
    assert (
        memory.memory_capacity(BF16, layout(16)).cache.shape.page_bytes
        == memory.memory_capacity(BF16, layout(8)).cache.shape.page_bytes
    )
    assert any("KV heads" in finding.message for finding in memory.layout_issues(BF16, layout(16)))


def test_the_published_layouts_have_nothing_to_remark() -> None:
    for gpus in (4, 8):
        assert memory.layout_issues(BF16, layout(gpus)) == memory.layout_issues(FP8, layout(gpus)) == []


def test_experts_and_heads_that_do_not_divide_are_fatal() -> None:
    messages = [finding.message for finding in memory.layout_issues(BF16, layout(5)) if finding.fatal]
    assert any("288 experts cannot be split over 5 GPUs; tensor-parallel-size can be 1, 2, 4" in m for m in messages)
    assert any("64 attention heads" in message for message in messages)


@pytest.mark.parametrize(("gpus", "verdict"), [(1, None), (2, None), (4, False), (8, False), (16, True)])
def test_fp8_without_expert_parallelism_is_native_slow_or_impossible(gpus: int, verdict: bool | None) -> None:
    about_blocks = [f for f in memory.layout_issues(FP8, layout(gpus, expert_parallel=False)) if "FP8" in f.message]
    assert [finding.fatal for finding in about_blocks] == ([] if verdict is None else [verdict])
    assert all("enable-expert-parallel" in finding.message for finding in about_blocks)


def test_every_shipped_layout_leaves_a_cache_worth_having() -> None:
    for item in PROFILE_GPUS:
        config = load_config({"profile": item.profile}, [])
        shape = memory.KNOWN[config.model.source]
        assert memory.memory_capacity(shape, layout(item.gpus, item.accelerators[0])).cache_bytes > 15 * GB


def test_a_cluster_too_small_for_a_pinned_profile_does_not_get_another() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        load_config({"profile": "h100-x9"}, [HEAD])
    assert load_config({"profile": "h100-x8"}, [HEAD]).profile == "h100-x8"
