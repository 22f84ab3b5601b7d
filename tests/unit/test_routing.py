"""Which replica a request goes to."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocol.messages import ReplicaCapacity, ReplicaLoad
from serve_app.protocol.pages import PAGE_TOKENS
from serve_app.router.routing import (
    AFFINITY_SLACK,
    PromptFacts,
    Reason,
    ReplicaFacts,
    assumed_rates,
    choose_by_session,
    choose_in_turn,
    choose_of_two,
    choose_replica,
)

RATE = 10_000.0


def replica(
    name: str,
    unfinished: int = 0,
    *,
    cached: int = 0,
    queued: int = 0,
    recent: float = 0.0,
    slots: int = 100,
    kv: float = 0,
) -> ReplicaFacts:
    load = ReplicaLoad(unfinished, slots, kv, False, queued, RATE, recent)
    return ReplicaFacts(name, load, ReplicaCapacity(service_s=10.0, kv_cache_tokens=1_000_000), cached)


def prompt(pages: int, shared: int = 0, conversations: int = 64, session: str = "") -> PromptFacts:
    """A prompt of full pages, of which the first `shared` belong to that many conversations."""
    counts = [conversations] * shared + [1] * (pages - shared)
    return PromptFacts(pages * PAGE_TOKENS + 10, range(pages), counts, session)


REPLICAS = st.lists(
    st.builds(
        replica,
        st.sampled_from("abcdefgh"),
        st.integers(0, 300),
        cached=st.integers(0, 500),
        queued=st.integers(0, 1_000_000),
        recent=st.floats(0, 100),
        kv=st.floats(0, 1),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.replica_id,
)


class TestByCost:
    def test_a_conversation_goes_on_where_its_prefix_is(self) -> None:
        decision = choose_replica([replica("a"), replica("b", 8, cached=500), replica("c")], prompt(550))
        assert (decision.replica_id, decision.reason) == ("b", Reason.PREFIX)
        assert decision.missing_tokens == 50 * PAGE_TOKENS + 10

    def test_who_goes_before_the_queue_does_not_wait_for_the_slots_of_those_in_it(self) -> None:
        longer = ReplicaLoad(400, 100, 0.0, False, 1000, RATE, 100.0, queued=300)
        shorter = ReplicaLoad(390, 100, 0.0, False, 8000, RATE, 100.0, queued=290)
        for goes_before, chosen in ((True, "a"), (False, "b")):
            candidates = [
                ReplicaFacts(name, load, ReplicaCapacity(service_s=10.0), goes_before_queue=goes_before)
                for name, load in (("a", longer), ("b", shorter))
            ]
            assert choose_replica(candidates, prompt(10)).replica_id == chosen

    def test_it_moves_when_the_wait_there_is_longer_than_its_prefill_elsewhere(self) -> None:
        home = replica("b", cached=500, queued=int(20 * RATE))
        decision = choose_replica([replica("a"), home], prompt(550))  # 14 s of prefill
        assert (decision.replica_id, decision.reason) == ("a", Reason.LOAD)

    def test_sessions_that_share_a_system_prompt_do_not_pile_up(self) -> None:
        warm = replica("a", recent=2, cached=12)
        assert choose_replica([warm, replica("b")], prompt(16, shared=12)).replica_id == "b"
        assert choose_replica([warm, replica("b")], prompt(16)).replica_id == "a"

    def test_an_agent_that_runs_a_tool_still_counts(self) -> None:
        decision = choose_replica([replica("a", recent=10), replica("b", 2)], prompt(16))
        assert (decision.replica_id, decision.reason) == ("b", Reason.NEW)

    def test_full_slots_and_a_full_cache_cost_their_wait(self) -> None:
        full = replica("a", 100, slots=100)
        assert choose_replica([full, replica("b", 8, slots=8)], prompt(16)).replica_id == "b"
        assert choose_replica([full, replica("b", 80, slots=8)], prompt(16)).replica_id == "a"
        crowded = replica("a", 2, kv=0.99)
        assert choose_replica([crowded, replica("b", 2)], prompt(200)).replica_id == "b"

    def test_a_child_starts_where_its_parent_is_even_if_it_is_busier(self) -> None:
        child = prompt(400, shared=390, conversations=2)
        assert choose_replica([replica("a", 12, cached=390), replica("b", 6)], child).replica_id == "a"

    def test_rates_that_are_not_measured_are_taken_from_the_others(self) -> None:
        fresh = replica("b")
        fresh = replace(fresh, load=ReplicaLoad(0, 100, 0.0, draining=False))
        assert choose_replica([replica("a", 5), fresh], prompt(100)).replica_id == "b"

    def test_no_candidate_is_the_callers_mistake(self) -> None:
        with pytest.raises(ValueError, match="no replica"):
            choose_replica([], prompt(1))

    @given(REPLICAS, st.integers(0, 500))
    def test_more_load_never_attracts(self, replicas: list[ReplicaFacts], pages: int) -> None:
        asked = prompt(pages)
        chosen = choose_replica(replicas, asked).replica_id
        heavier = [
            one
            if one.replica_id == chosen
            else replace(
                one,
                load=ReplicaLoad(
                    one.load.unfinished + 5, 100, one.load.kv_usage_ratio, False, one.load.queued_prefill_tokens + 1000,
                    RATE, one.load.recent_unfinished + 5,
                ),
            )
            for one in replicas
        ]  # fmt: skip
        assert choose_replica(heavier, asked).replica_id == chosen

    @given(REPLICAS, st.integers(0, 500))
    def test_more_cached_never_repels(self, replicas: list[ReplicaFacts], pages: int) -> None:
        asked = prompt(pages)
        chosen = choose_replica(replicas, asked).replica_id
        warmer = [
            replace(one, cached_pages=one.cached_pages + 1) if one.replica_id == chosen else one for one in replicas
        ]
        assert choose_replica(warmer, asked).replica_id == chosen

    @given(REPLICAS, st.integers(0, 500), st.randoms())
    def test_the_order_of_the_candidates_does_not_matter(
        self, replicas: list[ReplicaFacts], pages: int, rng: random.Random
    ) -> None:
        shuffled = list(replicas)
        rng.shuffle(shuffled)
        assert choose_replica(shuffled, prompt(pages)) == choose_replica(replicas, prompt(pages))


class TestForComparison:
    def test_a_session_keeps_its_replica_while_load_allows(self) -> None:
        replicas = [replica("a"), replica("b"), replica("c")]
        home = choose_by_session(replicas, prompt(4, session="s"))
        assert choose_by_session(replicas[::-1], prompt(9, session="s")) == home
        others = [one for one in replicas if one.replica_id != home]
        within = int(AFFINITY_SLACK * 100)
        assert choose_by_session([*others, replica(home, within)], prompt(4, session="s")) == home
        assert choose_by_session([*others, replica(home, within + 1)], prompt(4, session="s")) != home

    def test_turns_go_round(self) -> None:
        replicas = [replica("b"), replica("a")]
        assert [choose_in_turn(replicas, turn) for turn in range(4)] == ["a", "b", "a", "b"]

    def test_the_less_busy_of_two_drawn(self) -> None:
        assert choose_of_two([replica("a", 3), replica("b", 1)]) == "b"
        assert choose_of_two([replica("a", 3)]) == "a"


def test_a_replica_that_has_measured_nothing_is_taken_for_one_of_its_pool() -> None:
    def of(pool: str, rate: float | None) -> ReplicaFacts:
        return ReplicaFacts(f"{pool}{rate}", ReplicaLoad(0, 8, 0.0, False, 0, rate), pool=pool)

    fleet = [of("h100", 10_000.0), of("h200", 20_000.0), of("h200", 24_000.0), of("h200", None), of("b200", None)]
    assert assumed_rates(fleet) == {"h100": 10_000.0, "h200": 22_000.0, "b200": 18_000.0}


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0])
def test_two_pools_get_work_in_proportion_to_their_speed(ratio: float) -> None:
    """New prompts arrive as fast as both compute them; the queues run down in virtual time. (With less to do the faster
    one has more than its share: it is where a prompt is done first.)"""
    rates = {"slow": 10_000.0, "fast": 10_000.0 * ratio}
    queued, sent = dict.fromkeys(rates, 0.0), dict.fromkeys(rates, 0)
    drawn, tokens = random.Random(1), 20 * PAGE_TOKENS
    for _ in range(4000):
        passed_s = drawn.expovariate(1.05 * sum(rates.values()) / tokens)
        queued = {name: max(left - passed_s * rates[name], 0.0) for name, left in queued.items()}
        facts = [
            ReplicaFacts(name, ReplicaLoad(0, 100, 0.0, False, int(queued[name]), rate), pool=name)
            for name, rate in rates.items()
        ]
        chosen = choose_replica(facts, PromptFacts(tokens, range(20), [1] * 20)).replica_id
        queued[chosen] += tokens
        sent[chosen] += tokens
    assert sent["fast"] / sent["slow"] == pytest.approx(ratio, rel=0.1)
