"""What an ingress knows of the replicas' prefix caches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocol.messages import CacheChanges
from serve_app.protocol.pages import PAGE_TOKENS, ROOT, PromptImage, page_hash, prompt_pages
from serve_app.router.prefix_index import MAX_BRANCHES, ReplicaCache, SharedPrefixes

TOKENS = list(range(3 * PAGE_TOKENS + 7))


class TestPages:
    def test_only_full_pages_count_and_each_names_all_before_it(self) -> None:
        pages = prompt_pages(TOKENS)
        assert len(pages) == 3
        assert pages == prompt_pages([*TOKENS, 1, 2, 3])
        assert len({*pages, *prompt_pages([1, *TOKENS[1:]])}) == 5 + 1  # token 1 in place of 0 changes all of them
        assert prompt_pages([]) == []

    def test_they_can_be_hashed_one_by_one(self) -> None:
        parent = ROOT
        for number, page in enumerate(prompt_pages(TOKENS)):
            parent = page_hash(parent, TOKENS[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS])
            assert parent == page

    def test_an_image_changes_the_pages_that_it_reaches_into_and_all_after(self) -> None:
        plain = prompt_pages(TOKENS)
        seen = prompt_pages(TOKENS, [PromptImage("cat", PAGE_TOKENS + 1, PAGE_TOKENS + 20)])
        assert seen[0] == plain[0]
        assert not set(seen[1:]) & set(plain[1:])
        assert seen[1] == page_hash(plain[0], TOKENS[PAGE_TOKENS : 2 * PAGE_TOKENS], ["cat"])
        assert seen != prompt_pages(TOKENS, [PromptImage("dog", PAGE_TOKENS + 1, PAGE_TOKENS + 20)])

    def test_a_salt_keeps_prompts_apart(self) -> None:
        assert not set(prompt_pages(TOKENS, salt="a")) & set(prompt_pages(TOKENS, salt="b"))


class TestReplicaCache:
    def test_it_follows_the_reports(self) -> None:
        cache = ReplicaCache(100 * PAGE_TOKENS, reports=True)
        cache.apply(CacheChanges([1, 2, 3], reset=True))
        assert cache.count([1, 2, 3, 4]) == 3
        cache.apply(CacheChanges([4], removed=[2]))
        assert cache.count([1, 2, 3, 4]) == 1
        cache.apply(CacheChanges([9], reset=True))
        assert cache.count([1]) == 0

    def test_what_is_under_way_counts_until_it_has_ended(self) -> None:
        cache = ReplicaCache(100 * PAGE_TOKENS, reports=True)
        cache.expect([1, 2])
        cache.expect([1, 2, 3])
        cache.release([1, 2, 3])
        assert cache.count([1, 2, 3]) == 2
        cache.release([1, 2])
        assert cache.count([1, 2, 3]) == 0

    def test_without_reports_the_last_prompts_count(self) -> None:
        cache = ReplicaCache(4 * PAGE_TOKENS, reports=False)
        for pages in ([1, 2], [3, 4], [1, 2], [5]):
            cache.expect(pages)
            cache.release(pages)
        assert cache.count([1, 2]) == 2
        assert cache.count([3]) == 0
        assert cache.count([4]) == 1

    @given(st.lists(st.tuples(st.lists(st.integers(0, 50)), st.lists(st.integers(0, 50)), st.booleans())))
    def test_it_never_holds_more_than_the_engine_can(self, reports: list[tuple[list[int], list[int], bool]]) -> None:
        cache = ReplicaCache(10 * PAGE_TOKENS, reports=True)
        for stored, removed, reset in reports:
            cache.apply(CacheChanges(stored, removed, reset))
            assert sum(cache.count([page]) for page in range(51)) <= 10

    def test_its_size_is_known(self) -> None:
        cache = ReplicaCache(10_000 * PAGE_TOKENS, reports=True)
        cache.apply(CacheChanges(list(range(10_000)), reset=True))
        assert 500_000 < cache.size_bytes() < 2_000_000


class TestSharedPrefixes:
    def test_pages_before_a_fork_belong_to_all_that_follow(self) -> None:
        shared = SharedPrefixes()
        assert shared.observe([1, 2, 10, 11]) == [1, 1, 1, 1]
        assert shared.observe([1, 2, 20, 21]) == [2, 2, 1, 1]
        assert shared.observe([1, 2, 30]) == [3, 3, 1]
        assert shared.observe([1, 2, 10, 11, 12]) == [3, 3, 1, 1, 1]

    def test_turns_of_one_conversation_are_one(self) -> None:
        shared = SharedPrefixes()
        for length in range(1, 20):
            assert shared.observe(list(range(length))) == [1] * length

    def test_it_is_bounded_and_forgets_what_is_shared_last(self) -> None:
        shared = SharedPrefixes(max_pages=50)
        for number in range(1000):
            shared.observe([1, 2, 1000 * number + 10, 1000 * number + 11])
        assert shared.size_bytes() < 20_000
        assert shared.observe([1, 2, 5, 6])[:2] == [MAX_BRANCHES, MAX_BRANCHES]
