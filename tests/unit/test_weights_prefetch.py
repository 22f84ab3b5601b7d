"""Weights are read ahead once for each node, where they are files, fit, and are loaded through the page cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_app.config.profile import load_config
from serve_app.config.replicas import ReplicasConfig
from serve_app.engine import node_prefetch
from serve_app.engine.weights_prefetch import (
    BLOCK_BYTES,
    Checkpoint,
    Prefetched,
    _alone,
    prefetch,
    wanted,
    weight_files,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of two files with weights."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name, size_bytes in (("a.safetensors", BLOCK_BYTES + 5), ("b.safetensors", 100), ("c.bin", 7), ("d.json", 9)):
        (tmp_path / name).write_bytes(bytes(size_bytes))
    return tmp_path


def test_every_file_with_weights_is_read_to_its_end(folder: Path) -> None:
    found = prefetch(Checkpoint(str(folder)))
    assert (found.files, found.size_bytes, found.skipped) == (2, BLOCK_BYTES + 105, "")


def test_a_second_reader_of_the_node_leaves_it_to_the_first(folder: Path) -> None:
    checkpoint = Checkpoint(str(folder))
    with _alone(checkpoint) as mark:
        assert mark is not None
        assert prefetch(checkpoint).skipped == "another replica of this node reads it"
        assert not prefetch(Checkpoint(str(folder), "another revision")).skipped
    assert not prefetch(checkpoint).skipped


def test_another_node_asks_in_vain_for_what_has_been_read_lately(folder: Path) -> None:
    checkpoint = Checkpoint(str(folder))
    assert not prefetch(checkpoint, unless_fresh=True).skipped
    assert prefetch(checkpoint, unless_fresh=True).skipped == "it has been read lately"
    assert not prefetch(checkpoint).skipped, "a replica that starts here reads it again: it may have been forgotten"


def test_what_does_not_fit_into_memory_is_not_read(folder: Path) -> None:
    with (folder / "a.safetensors").open("r+b") as file:
        file.truncate(1 << 42)  # sparse
    assert "do not fit into the memory that is left" in prefetch(Checkpoint(str(folder))).skipped


def test_what_is_not_here_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert prefetch(Checkpoint("stepfun-ai/Step-3.7-Flash")) == Prefetched(skipped="no weights on this node")
    assert not weight_files(Checkpoint("/no/such/folder"))


@pytest.mark.parametrize(
    ("engine", "is_wanted"),
    [
        ({}, True),
        ({"prefetch_weights": False}, False),
        ({"kind": "fake"}, False),
        ({"flags": {"load-format": "safetensors"}}, True),
        ({"flags": {"load_format": "runai_streamer"}}, False),
        ({"flags": {"load-format": "dummy"}}, False),
    ],
)
def test_only_loaders_of_the_page_cache_have_it(engine: dict[str, Any], is_wanted: bool) -> None:
    config = load_config({"profile": "cpu-demo", "engine": engine})
    assert (wanted(config) is not None) == is_wanted


def node(name: str, *, alive: bool = True, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": resources, "Labels": labels or {}}


def test_nodes_that_may_get_a_replica_are_asked() -> None:
    nodes = [
        node("own", CPU=8, GPU=8),
        node("free", CPU=8, GPU=8),
        node("small", CPU=8, GPU=4),
        node("head", CPU=8),
        node("dead", alive=False, CPU=8, GPU=8),
        node("other", CPU=8, GPU=8, labels={"pool": "b"}),
    ]
    eight = ReplicasConfig(gpus_per_replica=8)
    assert node_prefetch.candidates(nodes, eight, "own") == ["free", "other"]
    pool = ReplicasConfig(gpus_per_replica=8, label_selector={"pool": "b"})
    assert node_prefetch.candidates(nodes, pool, "own") == ["other"]
    gang = ReplicasConfig(gpus_per_replica=8, nodes_per_replica=2)
    assert node_prefetch.candidates(nodes, gang, "own") == ["free", "small", "other"]
