"""A grammar in an engine, over grammars that misbehave. What real ones do is in `tests/contracts`."""

from __future__ import annotations

import types
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.vllm_patches import grammars
from serve_app.vllm_patches.grammars import COMPILE_LIMIT_S, SLOW_MASKS, GuardedGrammar

NO_MODULE = types.ModuleType("none")


class Row:
    """One row of a bitmask."""

    def __init__(self) -> None:
        self.value = 0

    def fill_(self, value: int) -> None:
        self.value = value


@dataclass
class Grammar:
    """Takes any token; raises or is slow where told."""

    fails: frozenset[str] = frozenset()
    cpu_s: float = 0.0
    clock: list[float] = field(default_factory=lambda: [0.0])

    def _do(self, what: str) -> None:
        if what in self.fails:
            raise RuntimeError(what)

    def fill_bitmask(self, bitmask: list[Row], index: int) -> None:
        self._do("fill")
        self.clock[0] += self.cpu_s
        bitmask[index].fill_(7)

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:  # noqa: ARG002  # vLLM's signature
        self._do("accept")
        return True

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        self._do("validate")
        return tokens

    def rollback(self, num_tokens: int) -> None:  # noqa: ARG002  # as above
        self._do("rollback")

    def is_terminated(self) -> bool:
        self._do("terminated")
        return True

    def reset(self) -> None:
        self._do("reset")


def use_all(guarded: GuardedGrammar, row: Row) -> tuple[bool, list[int], bool]:
    guarded.fill_bitmask([row], 0)
    guarded.rollback(1)
    guarded.reset()
    return guarded.accept_tokens("r", [1]), guarded.validate_tokens([1]), guarded.is_terminated()


def test_a_good_grammar_is_left_alone() -> None:
    row = Row()
    assert use_all(GuardedGrammar(Grammar()), row) == (True, [1], True)
    assert row.value == 7


@pytest.mark.parametrize("what", ["fill", "accept", "validate", "rollback", "reset"])
def test_one_that_raises_takes_no_further_token_and_masks_none(what: str) -> None:
    guarded, row = GuardedGrammar(Grammar(frozenset({what}))), Row()
    use_all(guarded, row)
    assert use_all(guarded, row) == (False, [], False)
    assert row.value == -1


def test_one_that_goes_on_being_slow_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Grammar(cpu_s=0.15)
    monkeypatch.setattr(grammars.time, "thread_time", lambda: slow.clock[0])
    guarded, row = GuardedGrammar(slow), Row()
    for _ in range(SLOW_MASKS):
        guarded.fill_bitmask([row], 0)
    assert guarded.accept_tokens("r", [1])
    guarded.fill_bitmask([row], 0)
    assert not guarded.accept_tokens("r", [1])
    assert row.value == -1


def test_a_request_does_not_wait_for_ever_for_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(grammars.time, "monotonic", lambda: clock[0])
    ready = grammars.wait_no_longer(lambda self: not isinstance(self._grammar, Future), NO_MODULE)
    asked: Any = SimpleNamespace(_grammar=Future())
    assert not ready(asked)
    clock[0] = COMPILE_LIMIT_S - 1
    assert not ready(asked)
    clock[0] = COMPILE_LIMIT_S
    assert ready(asked)
    assert isinstance(asked._grammar, TimeoutError)


class Manager:
    """vLLM's `StructuredOutputManager`, as far as its back end goes."""

    def __init__(self) -> None:
        self.backend: object | None = None
        self.backend_name: str | None = None
        self.executor = object()

    def grammar_init(self, request: Any) -> None:
        name = request.sampling_params.structured_outputs._backend
        if name == "broken":
            raise ValueError(name)
        if self.backend_name is not None and self.backend_name != name:
            raise ValueError("one back end per engine")
        if self.backend is None:
            self.backend, self.backend_name = f"back end {name}", name
        request.compiled = self.backend, self.executor


def asking(name: str) -> Any:
    params = SimpleNamespace(structured_outputs=SimpleNamespace(_backend=name))
    return SimpleNamespace(structured_output_request=object(), sampling_params=params)


def test_each_request_is_compiled_by_the_back_end_that_was_chosen_for_it() -> None:
    init = grammars.choose_by_request(Manager.grammar_init, NO_MODULE)
    manager = Manager()
    with pytest.raises(ValueError, match="broken"):
        init(manager, asking("broken"))
    for name in ("guidance", "xgrammar", "guidance"):
        request = asking(name)
        init(manager, request)
        assert request.compiled == (f"back end {name}", manager.executor)
    assert manager.backend == "back end guidance", "the first one allocates the masks"
    init(manager, SimpleNamespace(structured_output_request=None))
