"""Net changes of a cache: whoever applies them knows what it holds, whenever they were taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.cache_log import CacheLog, CacheMirror
from serve_app.protocol.messages import CacheChanges

STEPS = st.lists(
    st.tuples(st.sampled_from(["toggle", "toggle", "toggle", "reset", "take", "relay"]), st.integers(0, 5))
)


@given(STEPS)
def test_a_reader_knows_the_cache_however_seldom_it_reads(steps: list[tuple[str, int]]) -> None:
    held: set[int] = set()
    log, relay, often, seldom = CacheLog(), CacheLog(), CacheMirror(), CacheMirror()

    def take() -> None:
        if (changes := log.take()) is not None:
            assert not set(changes.stored) & set(changes.removed)
            assert set(changes.removed) <= often.pages
            often.apply(changes)
            relay.add(changes)
        assert often.pages == held

    for what, page in [*steps, ("relay", 0)]:
        if what == "toggle" and page in held:
            log.remove(page)
            held.discard(page)
        elif what == "toggle":
            log.store(page)
            held.add(page)
        elif what == "reset":
            log.reset()
            held.clear()
        else:
            take()
            if what == "relay":
                if (changes := relay.take()) is not None:
                    seldom.apply(changes)
                assert seldom.pages == held
    newcomer = CacheMirror()
    newcomer.apply(often.everything())
    assert newcomer.pages == held


def test_what_came_and_went_is_not_told() -> None:
    log = CacheLog()
    log.store(1)
    log.remove(1)
    assert log.take() is None
    log.store(2)
    assert log.take() == CacheChanges([2])
    log.remove(2)
    log.store(2)
    assert log.take() is None
