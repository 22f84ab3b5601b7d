"""From vLLM's blocks to pages, against a block cache in which every order of storing and removing happens."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.cache_log import CacheMirror
from serve_app.engine.cached_pages import CachedPages
from serve_app.engine.kv_events import KEPT_BATCHES, BatchSequence, page_keys
from serve_app.protocol.pages import PAGE_TOKENS, ROOT, page_hash

BLOCK = 64
PER_PAGE = PAGE_TOKENS // BLOCK

Sequence = tuple[int, ...]
"""A sequence's blocks, each of one token again and again. A prefix of it is the name of its last block."""


def page_of(sequence: Sequence) -> int:
    """The page that ends where the sequence does."""
    page = ROOT
    for start in range(0, len(sequence), PER_PAGE):
        page = page_hash(page, [token for token in sequence[start : start + PER_PAGE] for _ in range(BLOCK)])
    return page


def name_of(sequence: Sequence) -> bytes | None:
    return bytes(sequence) if sequence else None


def expected(cached: Counter[Sequence]) -> set[int]:
    """The pages of which every block is cached."""
    return {
        page_of(last)
        for last in cached
        if len(last) % PER_PAGE == 0 and all(last[: len(last) - back] in cached for back in range(PER_PAGE))
    }


class Store:
    """A block cache and who follows it."""

    def __init__(self) -> None:
        self.cached: Counter[Sequence] = Counter()
        self.pages = CachedPages(BLOCK, max_blocks=10_000)
        self.mirror = CacheMirror()

    def store(self, sequence: Sequence, after: int) -> None:
        """The blocks of a sequence from one on, as a request stores them: all before are cached."""
        blocks = [sequence[:end] for end in range(after + 1, len(sequence) + 1)]
        tokens = [token for token in sequence[after:] for _ in range(BLOCK)]
        self.cached.update(blocks)
        self.pages.store(name_of(sequence[:after]), [bytes(one) for one in blocks], tokens, [()] * len(blocks))

    def remove(self, block: Sequence) -> None:
        self.cached[block] -= 1
        self.cached += Counter()
        self.pages.remove(bytes(block))

    def check(self) -> None:
        if (changes := self.pages.log.take()) is not None:
            self.mirror.apply(changes)
        assert self.mirror.pages == expected(self.cached)


@given(st.data())
def test_a_page_is_cached_while_all_of_its_blocks_are(data: st.DataObject) -> None:
    store = Store()
    for _ in range(data.draw(st.integers(0, 40))):
        if store.cached and data.draw(st.booleans()):
            store.remove(data.draw(st.sampled_from(sorted(store.cached))))
        else:
            sequence = tuple(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=3 * PER_PAGE)))
            # A request finds some of its first blocks in the cache, perhaps not all that are there.
            found = next((n for n in range(len(sequence)) if sequence[: n + 1] not in store.cached), len(sequence))
            store.store(sequence, after=data.draw(st.integers(0, found)))
        if data.draw(st.booleans()):
            store.check()
    store.check()
    for block in list(store.cached.elements()):
        store.remove(block)
    store.check()
    assert not store.mirror.pages
    pages = store.pages
    assert not pages._blocks and not pages._chains and not pages._chains_of and not pages._complete


def test_what_vllm_tells_apart_may_be_one_page() -> None:
    pages = CachedPages(PAGE_TOKENS, max_blocks=100)
    tokens = [7] * PAGE_TOKENS
    pages.store(None, [b"before 1"], tokens, [()])
    pages.store(None, [b"before 2"], tokens, [()])
    assert pages.log.take() is not None
    pages.remove(b"before 1")
    assert pages.log.take() is None
    pages.remove(b"before 2")
    changes = pages.log.take()
    assert changes is not None and changes.removed == [page_hash(ROOT, tokens)]


def test_images_and_the_salt_are_keys_of_their_pages() -> None:
    pages = CachedPages(PAGE_TOKENS // 2, max_blocks=100)
    tokens = list(range(2 * PAGE_TOKENS))
    blocks: list[list[tuple[str, int] | str]] = [
        ["salt"],
        [("a", 3)],
        [("a", -80), ("b", 90)],
        [("a", -208), ("b", -38)],
    ]
    keys = [page_keys(one, PAGE_TOKENS // 2) for one in blocks]
    pages.store(None, [1, 2, 3, 4], tokens, keys)
    first = page_hash(ROOT, tokens[:PAGE_TOKENS], ["salt", "a"])
    changes = pages.log.take()
    assert changes is not None
    assert changes.stored == [first, page_hash(first, tokens[PAGE_TOKENS:], ["a", "b"])]


def test_an_image_of_the_tokens_that_a_hash_looks_ahead_at_is_not_in_the_page() -> None:
    assert page_keys([("a", 100), ("b", 128), "salt"], 128) == ["salt", "a"]
    assert page_keys(None, 128) == []


def test_blocks_behind_unknown_ones_are_left_out_until_those_are_known() -> None:
    pages = CachedPages(PAGE_TOKENS, max_blocks=100)
    pages.store(1, [2], [5] * PAGE_TOKENS, [()])
    assert pages.log.take() is None
    pages.store(None, [1, 2], [4] * PAGE_TOKENS + [5] * PAGE_TOKENS, [(), ()])
    changes = pages.log.take()
    assert changes is not None and len(changes.stored) == 2


def test_more_blocks_than_there_are_forget_everything() -> None:
    pages = CachedPages(PAGE_TOKENS, max_blocks=8)
    for number in range(100):
        pages.store(None, [number], [number] * PAGE_TOKENS, [()])
        assert len(pages._blocks) <= 8
    changes = pages.log.take()
    assert changes is not None and changes.reset and len(changes.stored) <= 8


class Log:
    """What a `BatchSequence` does."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.sequence = BatchSequence(
            lambda batch: self.done.append(batch.decode()),
            lambda: self.done.append("lost"),
            lambda number: self.done.append(f"ask {number}"),
        )

    def published(self, *numbers: int) -> list[str]:
        for number in numbers:
            self.sequence.published(number, str(number).encode())
        return self.done

    def replayed(self, *numbers: int) -> list[str]:
        for number in numbers:
            self.sequence.replayed(number, str(number).encode())
        self.sequence.replayed_all()
        return self.done


def test_batches_in_order_are_taken_at_once() -> None:
    assert Log().published(0, 1, 1, 2) == ["0", "1", "2"]


def test_missed_batches_are_asked_for_and_taken_first() -> None:
    log = Log()
    assert log.published(0, 3, 4) == ["0", "ask 1"]
    assert log.replayed(1, 2, 3) == ["0", "ask 1", "1", "2", "3", "4"]
    assert log.published(5)[-1] == "5"


def test_batches_that_are_gone_for_good_are_said_to_be_lost() -> None:
    log = Log()
    log.published(2, 3)
    assert log.replayed(1, 2) == ["ask 0", "lost", "1", "2", "3"]
    log = Log()
    log.published(2, 3, 5)
    assert log.replayed() == ["ask 0", "lost", "2", "3", "lost", "5"]


def test_a_core_that_does_not_answer_is_not_waited_for() -> None:
    log = Log()
    log.published(*range(1, KEPT_BATCHES + 2))
    assert log.done[:3] == ["ask 0", "lost", "1"]
    assert log.published(KEPT_BATCHES + 2)[-1] == str(KEPT_BATCHES + 2)
