"""The table of starts, and the configuration that they have."""

from __future__ import annotations

from bench.start import Start, as_text, config_of


def test_a_start_is_compared_with_the_first_one() -> None:
    first = Start("first", {"import": 5.0, "compile": 35.0}, 60.0)
    after = Start("next 1", {"import": 5.0, "compile": 5.0, "warm_up": 2.0}, 12.0)
    assert as_text([first, after]).splitlines()[2:] == [
        "| import | 5.0 | 5.0 |",
        "| compile | 35.0 | 5.0 |",
        "| warm_up | 0.0 | 2.0 |",
        "| total, s | 40.0 | 12.0 |",
        "| CPU, s | 60.0 | 12.0 |",
        "| of the first | 1.00 | 0.30 |",
    ]


def test_the_model_is_compiled_unless_it_is_eager() -> None:
    assert config_of("cpu-demo", eager=False).engine.flags["enforce-eager"] is False
    assert config_of("cpu-demo", eager=True).engine.flags["enforce-eager"] is True
