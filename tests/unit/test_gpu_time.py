"""An engine's time by client: all of it goes to somebody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.gpu_time import GpuTime


def test_decoding_is_shared_alike_and_prefill_is_paid_by_the_prompt() -> None:
    time = GpuTime()
    time.begin(10.0)
    time.step(11.0, 0.0, {"alice": 2, "bob": 1}, [], "")
    time.step(12.0, 0.7, {"alice": 1, "bob": 1}, [("carol", 700)], "")
    assert time.totals() == {
        "alice": pytest.approx(2 / 3 + 0.15),
        "bob": pytest.approx(1 / 3 + 0.15),
        "carol": pytest.approx(0.7),
    }


def test_prompts_share_by_tokens_and_an_unfinished_one_is_charged_as_it_goes() -> None:
    time = GpuTime()
    time.begin(0.0)
    time.step(3.0, 0.0, {}, [("alice", 300), ("bob", 100)], "carol")
    time.step(5.0, 1.0, {"alice": 1}, [], "carol")
    assert time.totals() == pytest.approx({"alice": 2.25 + 1.0, "bob": 0.75, "carol": 1.0})


def test_idle_time_is_nobodys() -> None:
    time = GpuTime()
    time.begin(0.0)
    time.step(1.0, 0.0, {}, [("alice", 10)], "")
    time.end(1.5, "alice")
    time.step(50.0, 0.0, {"late": 1}, [], "")
    time.end(60.0, "")
    time.begin(100.0)
    time.begin(101.0)
    time.end(102.0, "bob")
    assert time.totals() == pytest.approx({"alice": 1.5, "bob": 2.0})


clients = st.sampled_from(["", "alice", "bob", "carol"])


@given(
    st.lists(
        st.tuples(
            st.floats(0, 10),
            st.floats(0, 20),
            st.dictionaries(clients, st.integers(1, 4)),
            st.lists(st.tuples(clients, st.integers(0, 1000)), max_size=3),
            clients,
        ),
        max_size=20,
    )
)
def test_the_sum_over_clients_is_the_whole(
    steps: list[tuple[float, float, dict[str, int], list[tuple[str, int]], str]],
) -> None:
    time, now_s = GpuTime(), 5.0
    time.begin(now_s)
    for lasts_s, stall_s, decoding, computed, oldest in steps:
        now_s += lasts_s
        time.step(now_s, stall_s, decoding, computed, oldest)
    assert sum(time.totals().values()) == pytest.approx(now_s - 5.0)
