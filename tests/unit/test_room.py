"""Whether the parts of a fleet fit together, and whether a replacement may start first."""

from __future__ import annotations

import pytest

from serve_app.config import fleet, room
from serve_app.config.hardware import NodeGpus, NoProfileFits
from serve_app.config.replicas import ReplicasConfig
from serve_app.config.yaml_lines import parse

EIGHT = ReplicasConfig(gpus_per_replica=8, cpus_per_replica=4)
POOLS = """\
profile: h100-x8
engine: {flags: {max-model-len: 131072}}
pools:
  - {name: a, replicas: {min: 1, max: 1}}
  - {name: b, profile: h100-x4-fp8, replicas: {min: 2, max: 2%s}}
"""


def nodes(*gpus: int) -> list[NodeGpus]:
    return [NodeGpus(f"n{number}", "H100", count, 64) for number, count in enumerate(gpus)]


def test_engines_take_what_they_need_of_the_nodes() -> None:
    left = room.taken(EIGHT, 1, nodes(4, 8))
    assert left is not None
    assert [(one.gpus, one.cpus) for one in left] == [(4, 64), (0, 60)]
    assert room.taken(EIGHT, 2, nodes(4, 8)) is None


def test_a_gang_takes_its_share_of_each_node() -> None:
    gang = ReplicasConfig(gpus_per_replica=16, nodes_per_replica=2, cpus_per_replica=4)
    left = room.taken(gang, 1, nodes(8, 8, 8))
    assert left is not None
    assert [(one.gpus, one.cpus) for one in left] == [(0, 62), (0, 62), (8, 64)]


def test_pools_that_fit_alone_may_not_fit_together() -> None:
    found = fleet.load(parse(POOLS % "", "deploy.yaml"), nodes(8, 8))
    room.check_fit(found, nodes(8, 8))
    with pytest.raises(NoProfileFits, match="pool b has no room for 2 engine"):
        room.check_fit(found, nodes(8, 4))


def test_a_successor_starts_first_where_there_is_room_for_it() -> None:
    assert room.surges(EIGHT, nodes(8))
    assert not room.surges(EIGHT, nodes(4, 4))
    assert not room.surges(EIGHT.model_copy(update={"surge": 0}), nodes(8))
    assert room.surges(EIGHT.model_copy(update={"surge": 1}), nodes(4, 4))


def test_a_surge_that_could_never_start_is_refused() -> None:
    found = fleet.load(parse(POOLS % ", surge: 1", "deploy.yaml"), nodes(8, 8))
    with pytest.raises(NoProfileFits, match=r"`replicas.surge: 1` needs room for one engine more"):
        room.check_fit(found, nodes(8, 8))
    room.check_fit(found, nodes(8, 8, 4))
