"""Whose request an engine starts next."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.fair_queue import MAX_ACCOUNTS, OUTPUT_COST, OVERDUE_EVERY, FairQueue, Flow, prompt_cost


def served(queue: FairQueue, count: int) -> list[str]:
    """The clients whose requests start, one slot after the other; each request ends at once."""
    clients = []
    for _ in range(count):
        request_id = queue.next()
        assert request_id is not None
        queue.start(request_id)
        queue.leave(request_id)
        clients.append(request_id.split(":")[0])
    return clients


def fill(queue: FairQueue, client: str, count: int, cost: float = 100.0, **flow: object) -> None:
    for number in range(count):
        session = flow.get("session", "")
        queue.put(f"{client}:{session}:{number}", Flow(client, **flow), cost)  # type: ignore[arg-type]


def test_a_flood_does_not_delay_others() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "flood", 500)
    served(queue, 20)
    fill(queue, "alice", 3)
    assert served(queue, 6).count("alice") == 3


def test_tokens_count_and_not_requests() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "long", 50, cost=1000)
    fill(queue, "short", 500, cost=100)
    counts = served(queue, 220)
    assert 15 <= counts.count("long") <= 25


def test_a_weight_is_a_share() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "gold", 400, weight=3.0)
    fill(queue, "plain", 400)
    assert 140 <= served(queue, 200).count("gold") <= 160


def test_a_weight_is_a_share_of_all_sessions_together() -> None:
    queue = FairQueue(slots=1)
    for number in range(4):
        fill(queue, "plain", 100, session=f"s{number}")
    fill(queue, "gold", 400, weight=4.0)
    assert 155 <= served(queue, 200).count("gold") <= 165


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=4), st.integers(1, 8))
def test_shares_are_as_the_weights(weights: list[int], slots: int) -> None:
    """With requests of one size, each has its share of the cost to within one request, and one for each slot."""
    queue, starts = FairQueue(slots), 40
    for number, weight in enumerate(weights):
        fill(queue, str(number), starts + slots, weight=float(weight))
    running: list[str] = []
    counts = dict.fromkeys(map(str, range(len(weights))), 0)
    for _ in range(starts):
        if len(running) == slots:
            queue.leave(running.pop(0))
        request_id = str(queue.next())
        queue.start(request_id)
        running.append(request_id)
        counts[request_id.split(":", maxsplit=1)[0]] += 1
    for name, weight in zip(counts, weights, strict=True):
        assert abs(counts[name] - starts * weight / sum(weights)) <= len(weights)


def test_a_weight_may_change_while_requests_wait() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "gold", 400)
    fill(queue, "plain", 400)
    served(queue, 100)
    queue.put("new", Flow("gold", weight=3.0), 100.0)
    assert 140 <= served(queue, 200).count("gold") <= 160


def test_who_waits_long_in_a_lower_class_gets_one_start_of_sixteen() -> None:
    queue = FairQueue(slots=1, patience_s=100.0)
    fill(queue, "batch", 200, rank=-1)
    fill(queue, "urgent", 800, rank=1)
    order = []
    for number in range(400):
        request_id = str(queue.next(now_s=float(number)))
        queue.start(request_id)
        queue.leave(request_id)
        order.append(request_id.split(":", maxsplit=1)[0])
    assert "batch" not in order[:100]
    assert order[100:].count("batch") == 300 // OVERDUE_EVERY + 1


def test_who_was_started_for_its_long_wait_is_known_until_it_ends() -> None:
    queue = FairQueue(slots=2, patience_s=100.0)
    fill(queue, "batch", 2, rank=-1)
    fill(queue, "urgent", 40, rank=1)
    for _ in range(OVERDUE_EVERY):
        request_id = str(queue.next(now_s=0.0))
        queue.start(request_id)
        assert not queue.was_overdue(request_id)
        queue.leave(request_id)
    assert queue.next(now_s=100.0) == "batch::0"
    queue.start("batch::0")
    assert queue.was_overdue("batch::0")
    queue.leave("batch::0")
    assert not queue.was_overdue("batch::0")


def test_within_a_class_nobody_is_overdue() -> None:
    queue = FairQueue(slots=1, patience_s=1.0)
    fill(queue, "flood", 100)
    fill(queue, "alice", 20)
    request_ids = []
    for _ in range(40):
        request_ids.append(str(queue.next(now_s=1000.0)))
        queue.start(request_ids[-1])
        queue.leave(request_ids[-1])
    assert sum(one.startswith("alice") for one in request_ids) == 20


def test_a_rank_goes_first() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "batch", 5, rank=-1)
    fill(queue, "normal", 5)
    fill(queue, "urgent", 5, rank=1)
    assert served(queue, 15) == ["urgent"] * 5 + ["normal"] * 5 + ["batch"] * 5


def test_sessions_of_a_client_share_what_it_has() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "alice", 50, session="busy")
    fill(queue, "alice", 2, session="calm")
    fill(queue, "bob", 50)
    order = []
    for _ in range(8):
        request_id = queue.next()
        assert request_id is not None
        queue.start(request_id)
        queue.leave(request_id)
        order.append(request_id.rsplit(":", 1)[0])
    assert order.count("alice:calm") == 2
    assert order.count("bob:") == 4


def test_idle_time_is_not_saved_up() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "busy", 1000)
    served(queue, 500)
    fill(queue, "new", 100)
    assert 90 <= served(queue, 200).count("busy") <= 110


def test_new_sessions_that_keep_coming_do_not_hold_off_an_old_one() -> None:
    queue = FairQueue(slots=4)
    fill(queue, "alice", 500, session="old")
    served(queue, 500)
    fill(queue, "alice", 1, session="old")
    queue.put("next", Flow("alice", "old"), 100.0)
    for number in range(20):
        queue.put(f"new {number}", Flow("alice", f"session {number}"), 100.0)
        request_id = str(queue.next())
        queue.start(request_id)
        queue.leave(request_id)
        if request_id.startswith("alice:old"):
            return
    raise AssertionError("twenty new sessions went before it")


def test_who_was_alone_owes_nothing() -> None:
    queue = FairQueue(slots=4)
    for number in range(1000):
        queue.put(f"a{number}", Flow("alice"), 1000.0)
        queue.start(f"a{number}")
        queue.leave(f"a{number}")
    fill(queue, "bob", 200, cost=1000.0)
    served(queue, 5)
    fill(queue, "alice", 50, cost=1000.0)
    assert served(queue, 20).count("alice") >= 9


def test_a_rank_goes_first_within_a_client_too() -> None:
    queue = FairQueue(slots=1)
    queue.put("batch", Flow(rank=-1), 1.0)
    queue.put("normal", Flow(), 100.0)
    assert queue.next() == "normal"


def test_who_was_idle_saves_nothing_up_while_a_lower_class_waits() -> None:
    queue = FairQueue(slots=16)
    fill(queue, "batch", 10, rank=-1)
    for number in range(3000):
        queue.put(f"alone {number}", Flow("a", rank=1), 100.0)
        queue.start(f"alone {number}")
        queue.leave(f"alone {number}")
    fill(queue, "a", 1500, rank=1)
    fill(queue, "b", 1500, rank=1)
    assert 730 <= served(queue, 1500).count("b") <= 770


def test_a_lower_class_gets_no_slot_that_a_higher_one_may_not_have() -> None:
    queue = FairQueue(slots=64)
    fill(queue, "alice", 1, rank=1)
    fill(queue, "flood", 200, rank=1)
    fill(queue, "batch", 10, rank=-1)
    for _ in range(62):
        queue.start(str(queue.next()))
    queue.leave("alice::0")  # it was here a moment ago: a slot is kept for it
    queue.start(str(queue.next()))
    assert queue.next() is None
    assert not queue.is_full


def test_a_slot_more_is_gained_by_those_that_wait_for_it() -> None:
    queue = FairQueue(slots=2)
    fill(queue, "batch", 4, rank=-1)
    for _ in range(2):
        queue.start(str(queue.next()))
    assert not queue.gains(1, coming=0)  # nobody of it waits
    assert not queue.gains(0, coming=0)
    fill(queue, "urgent", 2, rank=1)
    assert queue.gains(1, coming=0)
    assert queue.gains(1, coming=1)
    assert not queue.gains(1, coming=2)  # each has one
    queue.put("moved", Flow("batch", rank=-1), 1.0, first=True)
    assert not queue.gains(1, coming=0)  # it would be the one's that goes first


def test_who_may_not_have_the_last_slots_gains_none() -> None:
    queue = FairQueue(slots=64)
    fill(queue, "batch", 63, rank=-1)
    fill(queue, "alice", 1, rank=1)
    for _ in range(32):
        queue.start(str(queue.next()))
    fill(queue, "flood", 40, rank=1)
    for _ in range(32):
        queue.start(str(queue.next()))
    assert queue.is_full
    assert not queue.gains(1, coming=0)  # half of the slots are its share
    fill(queue, "bob", 1, rank=1)
    assert queue.gains(1, coming=0)


def test_answers_are_charged_as_they_grow() -> None:
    queue = FairQueue(slots=3)
    fill(queue, "talker", 5)
    fill(queue, "quiet", 5)
    queue.start("talker::0")
    queue.charge("talker::0", OUTPUT_COST * 1000)
    queue.start("quiet::0")
    assert queue.next() == "quiet::1"


events = st.tuples(st.integers(0, 5), st.sampled_from(["put", "start", "charge", "charge", "leave"]))


@given(st.lists(events, max_size=60))
def test_it_makes_no_difference_when_what_was_used_goes_into_the_accounts(happens: list[tuple[int, str]]) -> None:
    late, at_once = FairQueue(slots=3), FairQueue(slots=3)
    newest: dict[int, str] = {}
    for number, (client, what) in enumerate(happens):
        chosen = at_once.next() if what == "start" else None
        newest[client] = f"{client}::{number}" if what == "put" else newest.get(client, "")
        for queue in (late, at_once):
            if what == "put":
                flow = Flow(str(client), f"session {number % 2}", weight=1.0 + client)
                queue.put(newest[client], flow, 100.0)
            elif chosen is not None:
                queue.start(chosen)
            elif what == "charge":
                queue.charge(newest[client], 7.0)
            elif what == "leave":
                queue.leave(newest[client])
        at_once.used()
    assert late.used() == pytest.approx(at_once.used())


def test_a_request_that_ran_before_goes_first() -> None:
    queue = FairQueue(slots=2)
    fill(queue, "alice", 3)
    queue.put("moved", Flow("bob"), 1e6, first=True)
    assert queue.next() == "moved"


def test_the_last_slots_are_kept_while_others_come() -> None:
    queue = FairQueue(slots=64)
    fill(queue, "flood", 200)
    for _ in range(64):  # alone it gets all of them
        queue.start(str(queue.next()))
    assert queue.next() is None
    fill(queue, "alice", 1)
    for number in range(3):
        queue.leave(f"flood::{number}")
    assert queue.next() == "alice::0"
    queue.start("alice::0")
    queue.leave("alice::0")
    queue.start(str(queue.next()))
    assert len(queue) == 135
    assert queue.next() is None  # two are left, and alice was here a moment ago
    fill(queue, "bob", 1)
    assert queue.next() == "bob::0"


def test_a_prompt_that_is_cached_costs_little() -> None:
    assert prompt_cost(3_000, 139_000) < 10_000 < prompt_cost(142_000, 0)


def test_where_there_is_no_room_the_one_with_the_most_gives_way() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "flood", 9)
    fill(queue, "bob", 2)
    queue.start("flood::0")
    assert queue.to_displace(Flow("alice")) == "flood::8"
    assert queue.to_displace(Flow("bob")) == "flood::8"
    assert queue.to_displace(Flow("flood")) is None
    queue.leave("flood::8")
    assert queue.to_displace(Flow("alice")) == "flood::7"
    fill(queue, "batch", 1, rank=-1)
    assert queue.to_displace(Flow("flood")) == "batch::0"
    assert queue.to_displace(Flow("other", rank=-2)) is None
    assert FairQueue(slots=1).to_displace(Flow("alice")) is None


def test_who_was_taken_before_does_not_give_way() -> None:
    queue = FairQueue(slots=1)
    fill(queue, "flood", 3)
    queue.start("flood::0")
    queue.put("taken", Flow("batch", rank=-1), 1.0, kept=True)
    queue.put("moved", Flow("flood"), 1.0, kept=True)
    assert queue.to_displace(Flow("alice")) == "flood::2"
    queue.leave("flood::2")
    queue.leave("flood::1")
    assert queue.to_displace(Flow("alice", rank=1)) is None


def test_who_is_gone_is_forgotten() -> None:
    queue = FairQueue(slots=4)
    for number in range(3 * MAX_ACCOUNTS):
        queue.put(f"r{number}", Flow(f"client-{number}"), 1.0)
        queue.start(f"r{number}")
        queue.leave(f"r{number}")
    assert len(queue.used()) == MAX_ACCOUNTS


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(1, 1000)), min_size=1, max_size=60),
    st.integers(1, 8),
    st.randoms(),
)
def test_every_request_starts_once_and_slots_hold(
    requests: list[tuple[str, str, int]], slots: int, rng: random.Random
) -> None:
    queue = FairQueue(slots)
    for number, (client, session, cost) in enumerate(requests):
        queue.put(str(number), Flow(client, session), cost)
    running: list[str] = []
    started = []
    while len(started) < len(requests):
        request_id = queue.next()
        if request_id is None:
            assert running, "nothing runs and nothing starts"
            queue.leave(running.pop(rng.randrange(len(running))))
            continue
        queue.start(request_id)
        running.append(request_id)
        started.append(request_id)
        assert len(running) <= slots
    assert sorted(started, key=int) == [str(number) for number in range(len(requests))]


@given(st.lists(st.integers(1, 500), min_size=2, max_size=200), st.integers(0, 1000))
def test_who_waits_gets_within_one_request_of_the_others(costs: list[int], seed: int) -> None:
    """The bound of the paper: of two clients that both wait, none is ahead by more than the largest request."""
    rng = random.Random(seed)
    queue = FairQueue(slots=1)
    waiting = {"a": 0, "b": 0}
    by_id = {}
    for number, cost in enumerate(costs):
        client = rng.choice("ab")
        queue.put(f"{client}{number}", Flow(client), cost)
        by_id[f"{client}{number}"] = cost
        waiting[client] += 1
    used = {"a": 0, "b": 0}
    while all(waiting.values()):
        request_id = queue.next()
        assert request_id is not None
        queue.start(request_id)
        queue.leave(request_id)
        used[request_id[0]] += by_id[request_id]
        waiting[request_id[0]] -= 1
        assert abs(used["a"] - used["b"]) <= max(costs)
