"""Flags that vLLM's parser takes and its engine, or this service, does not: refused before anything starts."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from serve_app.__main__ import main
from serve_app.config.profile import PROFILES, load_config
from serve_app.config.refused_flags import OWNED, UNREAD
from serve_app.config.schema import ConfigError
from serve_app.config.vllm_flags import argv_of, check_engine_flags, engine_argv, parse, serve_parser

READ = {
    *("lora-modules", "chat-template", "chat-template-content-format", "trust-request-chat-template"),
    *("trust-request-mm-kwargs", "default-chat-template-kwargs", "response-role", "return-tokens-as-token-ids"),
    *("enable-auto-tool-choice", "exclude-tools-when-tool-choice-none", "tool-call-parser", "tool-strict-level"),
    *("tool-server", "max-log-len", "enable-prompt-tokens-details", "enable-per-request-metrics"),
    *("enable-force-include-usage", "enable-log-outputs", "enable-log-deltas", "cohere-is-reasoning-model"),
    *("cohere-format", "anthropic-disabled-thinking-effort", "log-error-stack", "fingerprint-mode"),
    *("fingerprint-value", "middleware"),
    "reasoning-effort-map",  # 0.33
}
"""Front-end flags of vLLM's that its API app reads, which is served here."""


def config_of(flags: dict[str, object], **sections: Any):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return load_config({"profile": "cpu-demo", "engine": {"flags": flags}, **sections}, [])


def refusal(flags: dict[str, object], **sections: Any) -> str:
    """The words of what `python -m serve_app argv --check-model` refuses."""
    config = config_of(flags, **sections)
    with pytest.raises(ConfigError) as caught:
        check_engine_flags(config, engine_argv(config))
    return str(caught.value)


def parsed(flags: dict[str, object], **sections: Any) -> Namespace:
    return parse(engine_argv(config_of(flags, **sections)), serve_parser())


# ---- values that only an engine would refuse -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"gpu-memory-utilization": 90}, "gpu_memory_utilization: Input should be less than or equal to 1"),
        ({"max-num-seqs": 0}, "`max-num-seqs` is 0; an engine needs 1 or more"),
        ({"max-num-seqs": -4}, "`max-num-seqs` is -4; an engine needs 1 or more"),
        ({"max_num_batched_tokens": 32}, "max_num_batched_tokens (32) must be greater than or equal to max_num_seqs"),
        (
            {"reasoning-parser": "step3p55"},
            "`reasoning-parser`: vLLM has no parser 'step3p55'; did you mean `step3p5`?",
        ),
        (
            {"tool-call-parser": "step3p55"},
            "`tool-call-parser`: vLLM has no parser 'step3p55'; did you mean `step3p5`?",
        ),
        ({"tool-call-parser": "1.2.3"}, "`tool-call-parser`: vLLM has no parser '1.2.3'; there are: "),
        (
            {"speculative-config": {"num_speculative_token": 3}},
            "`speculative-config`: num_speculative_token: Unexpected keyword argument",
        ),
        ({"stream-interval": 0}, "stream_interval: Input should be greater than or equal to 1"),
        ({"max-model-len": 999999999}, "User-specified max_model_len (999999999) is greater"),
        (
            {"structured-outputs-config": {"backend": "x"}},
            "argument --structured-outputs-config: backend: Input should be 'auto'",
        ),
        ({"chat-template": "/nope"}, "The supplied chat template string (/nope) appears path-like"),
    ],
)
def test_a_value_that_no_engine_starts_with_is_refused_in_one_line(flags: dict[str, object], words: str) -> None:
    told = refusal(flags)
    assert told.startswith("args in deploy.yaml: engine.flags: ")
    assert words in told
    assert "\n" not in told


def test_a_refusal_names_the_line_of_a_profile_with_the_flag(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text((PROFILES / "cpu-demo.yaml").read_text().replace("max-num-seqs: 64", "max-num-seqs: 0"))
    line = file.read_text().splitlines().index("    max-num-seqs: 0") + 1
    with pytest.raises(ConfigError, match=re.escape(f"{file}:{line}: engine.flags: `max-num-seqs` is 0")):
        engine_argv(load_config({"profile": str(file)}, []))


def test_the_demo_passes() -> None:
    config = config_of({})
    check_engine_flags(config, engine_argv(config))


@pytest.mark.parametrize("flags", ["chat-template: /nope", "gpu-memory-utilization: 90"])
def test_the_command_tells_it_without_a_traceback(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")  # put back after what the command sets
    file = tmp_path / "deploy.yaml"
    args = f"{{profile: cpu-demo, engine: {{flags: {{{flags}}}}}}}"
    file.write_text(f"applications:\n- name: step\n  import_path: serve_app.app:build\n  args: {args}\n")
    assert main(["argv", "--check-model", "--file", str(file)]) == 1
    assert "error: args in deploy.yaml: engine.flags: " in capsys.readouterr().err


# ---- flags that nothing reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("ssl-certfile", "end TLS in front"),
        ("ssl_keyfile", "end TLS in front"),
        ("allowed-origins", "`ingress.allowed_origins`"),
        ("uds", "http_options"),
        ("root-path", "the proxy in front"),
        ("sse-keep-alive-interval", "`ingress.keep_alive_s`"),
        ("tool-parser-plugin", "vllm.general_plugins"),
    ],
)
def test_a_flag_without_effect_is_refused_with_what_has_one(name: str, instead: str) -> None:
    told = refusal({name: "x"})
    assert f"`{name.replace('_', '-')}` " in told
    assert instead in told


def test_each_front_end_flag_of_vllm_is_read_or_refused() -> None:
    """A new one of vLLM's fails here: find out whether anything of this service reads it."""
    groups = serve_parser()._action_groups
    actions = next(group for group in groups if group.title == "Frontend")._group_actions
    names = {action.option_strings[0].removeprefix("--") for action in actions}
    assert {"ssl-keyfile", "chat-template"} <= names
    assert names - READ == names & {*OWNED, *UNREAD}


# ---- the effort and the template's other arguments -------------------------------------------------------------------


def test_arguments_of_the_template_are_laid_over_the_effort() -> None:
    effort = {"model": {"default_reasoning_effort": "high"}}
    both = parsed({"default-chat-template-kwargs": {"foo": 1}}, **effort)
    assert both.default_chat_template_kwargs == {"reasoning_effort": "high", "foo": 1}
    without = parsed({"default-chat-template-kwargs": None}, **effort)
    assert without.default_chat_template_kwargs == {"reasoning_effort": "high"}


def test_the_effort_has_one_source() -> None:
    told = refusal({"default-chat-template-kwargs": {"reasoning_effort": "low"}})
    assert "reasoning_effort is set by `model.default_reasoning_effort`" in told
    assert "write a mapping" in refusal({"default-chat-template-kwargs": "high"})


def test_a_flag_that_is_taken_away_has_no_words() -> None:
    assert argv_of({"chat-template": None}, serve_parser()) == []
