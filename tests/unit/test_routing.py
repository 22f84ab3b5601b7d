"""Which replica a request goes to."""

from __future__ import annotations

import pytest

from serve_app.protocol.messages import ReplicaLoad
from serve_app.router.attempts import ReplicaFacts
from serve_app.router.routing import AFFINITY_SLACK, affinity_key, choose_replica


def replica(name: str, unfinished: int = 0, slots: int = 100, kv: float = 0.0) -> ReplicaFacts:
    return ReplicaFacts(name, ReplicaLoad(unfinished, slots, kv, draining=False))


def test_a_session_stays_where_it_is_while_load_allows() -> None:
    replicas = [replica("a"), replica("b"), replica("c")]
    homes = {choose_replica(replicas, affinity_key(f"session-{n}", [])) for n in range(50)}
    assert homes == {"a", "b", "c"}
    key = affinity_key("session-7", [])
    assert len({choose_replica(list(reversed(replicas)), key), choose_replica(replicas, key)}) == 1


def test_a_lost_replica_moves_only_its_own_sessions() -> None:
    replicas = [replica("a"), replica("b"), replica("c")]
    keys = [affinity_key(f"session-{n}", []) for n in range(200)]
    before = [choose_replica(replicas, key) for key in keys]
    after = [choose_replica(replicas[:2], key) for key in keys]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "c")


def test_a_warm_cache_is_not_worth_any_wait() -> None:
    key = affinity_key("s", [])
    home = choose_replica([replica("a"), replica("b")], key)
    other = "b" if home == "a" else "a"
    within = int(AFFINITY_SLACK * 100)
    assert choose_replica([replica(home, unfinished=within), replica(other)], key) == home
    assert choose_replica([replica(home, unfinished=within + 1), replica(other)], key) == other


def test_a_nearly_full_cache_counts_as_full() -> None:
    key = affinity_key("s", [])
    home = choose_replica([replica("a"), replica("b")], key)
    other = "b" if home == "a" else "a"
    assert choose_replica([replica(home, kv=0.95), replica(other)], key) == other


def test_turns_of_one_conversation_share_a_key_and_others_do_not() -> None:
    system = list(range(1024))
    assert affinity_key(None, [*system, 1]) == affinity_key(None, [*system, 1, 2, 3])
    assert affinity_key(None, [1, 2, 3]) != affinity_key(None, [1, 2, 4])


def test_no_candidate_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="no replica"):
        choose_replica([], b"key")
