"""A cache bounded by size, against a list that is kept in order of use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocol.lru import LruCache

STEPS = st.lists(st.tuples(st.sampled_from(["get", "put", "forget"]), st.sampled_from("abcd"), st.integers(0, 6)))


@given(STEPS, st.integers(0, 10))
def test_what_was_used_longest_ago_goes_first(steps: list[tuple[str, str, int]], max_size: int) -> None:
    cache: LruCache[str, int] = LruCache(max_size)
    model: list[tuple[str, int]] = []
    for what, key, size in steps:
        held = [entry for entry in model if entry[0] == key]
        others = [entry for entry in model if entry[0] != key]
        if what == "get":
            assert cache.get(key) == (held[0][1] if held else None)
            model = others + held
        elif what == "forget":
            cache.forget(key)
            model = others
        else:
            cache.put(key, size, size)
            model = [*others, (key, size)] if size <= max_size else others
            while sum(size for _, size in model) > max_size:
                del model[0]
        assert cache.size == sum(size for _, size in model) <= max_size
    assert [(key, cache.get(key)) for key, _ in model] == model
    assert all(cache.get(key) is None for key in "abcd" if key not in dict(model))
