"""The flags of chaos: the defaults, and what is refused."""

from __future__ import annotations

import pytest

from chaos.options import BadOptions, Fault
from chaos.request_spec import ChaosApi, PromptKind
from tests.unit.chaos_examples import options_of


def test_the_defaults_kill_replicas_under_text_requests_of_every_api() -> None:
    found = options_of()
    assert found.fault is Fault.KILL
    assert found.apis == tuple(ChaosApi)
    assert found.kinds == (PromptKind.TEXT,)
    assert (found.at_token, found.faults, found.distinct_requests) == (None, None, 64)


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--url", "http://192.0.2.1:8000"], "--yes"),
        (["--url", "http://no-such-host.invalid"], "--yes"),
        (["--apis", "chat,telegraph"], "choose from chat, completions"),
        (["--kinds", "smell"], "choose from text"),
        (["--streams", "0"], "at least 1"),
        (["--at-token", "soon"], "random"),
        (["--at-token", "500"], "--tokens"),
        (["--tokens", "9"], "40-200"),
        (["--tokens", "90-80"], "40-200"),
        (["--fault", "none"], "--requests"),
        (["--requests", "10"], "--fault none, upgrade, rolling or drain-node"),
        (["--streams", "2", "--faults", "3"], "at most one"),
        (["--min-up", "1"], "one takes over"),
        (["--min-up", "2", "--fault", "slow"], "ends a replica"),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_to_give_instead(flags: list[str], hint: str) -> None:
    with pytest.raises(BadOptions, match=hint):
        options_of(*flags)


def test_an_endpoint_on_another_machine_needs_yes() -> None:
    assert options_of("--url", "http://192.0.2.1:8000/v1", "--yes").url == "http://192.0.2.1:8000"
