"""What deploy.yaml and configs/*.yaml may say, and how a mistake in them is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli import docs
from serve_app.cli.config_checks import layout_of, shape_of
from serve_app.cli.plan import SESSION_TOKENS
from serve_app.config import memory, profile
from serve_app.config.hardware import NodeGpus
from serve_app.config.profile import ROOT, load_config, resolve
from serve_app.config.refused_flags import OWNED, UNREAD
from serve_app.config.schema import AppConfig, ConfigError, TracingConfig
from serve_app.config.vllm_flags import BadFlag, argv_of, engine_argv, parse, serve_parser
from serve_app.config.yaml_lines import BadYaml, YamlDocument
from serve_app.config.yaml_lines import parse as parse_yaml
from serve_app.engine import vllm_tracing

DEMO = {"profile": "cpu-demo"}
NO_GPU = [NodeGpus("head", None, 0)]


def refusal(args: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(args, NO_GPU)
    return str(caught.value)


def test_args_are_laid_over_the_profile_key_by_key() -> None:
    config = load_config({**DEMO, "engine": {"flags": {"max_num_seqs": 8}}, "replicas": {"max": 3}}, NO_GPU)
    assert config.engine.flags["max-num-seqs"] == 8
    assert config.engine.flags["enforce-eager"] is True
    assert (config.replicas.min, config.replicas.max) == (1, 3)


def test_a_fleet_may_have_no_engine_while_nobody_asks_and_starts_with_one() -> None:
    replicas = load_config({**DEMO, "replicas": {"min": 0, "idle_to_zero_s": 60}}, NO_GPU).replicas
    assert (replicas.may_sleep, replicas.min, replicas.max, replicas.needed) == (True, 0, 1, 1)
    assert "idle_to_zero_s is for min: 0, and min is 1" in refusal({**DEMO, "replicas": {"idle_to_zero_s": 60}})


def test_a_null_flag_takes_the_profiles_away() -> None:
    config = load_config({**DEMO, "engine": {"flags": {"speculative-config": None}}}, NO_GPU)
    assert not any("speculative" in word for word in engine_argv(config))


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    assert "unknown key `replicas.mim`; did you mean `min`?" in refusal({**DEMO, "replicas": {"mim": 1}})
    assert "unknown key `engin`; did you mean `engine`?" in refusal({**DEMO, "engin": {}})


def test_a_refusal_names_the_line_of_the_file_at_fault(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model:\n  source: models/step-tiny\ningress:\n  keep_alive_s: 60\n")
    assert f"{file}:4: ingress.keep_alive_s: input should be less than or equal to 10" in refusal(
        {"profile": str(file)}
    )


def test_every_fault_is_told_at_once() -> None:
    told = refusal({**DEMO, "replicas": {"mim": 1}, "ingress": {"max_body_bytes": -1}})
    assert "replicas.mim" in told
    assert "ingress.max_body_bytes" in told


@pytest.mark.parametrize(
    ("tracing", "told"),
    [
        ({"endpoint": "collector:4317"}, "'collector:4317' is no address"),
        ({"endpoint": "grpc://collector:4317"}, "is no address; write http://host:port"),
        ({"endpoint": "http://collector:99999"}, "is no address"),
        ({"sample_ratio": 1.5}, "tracing.sample_ratio: input should be less than or equal to 1"),
        ({"sampling": 1}, "unknown key `tracing.sampling`"),
    ],
)
def test_traces_that_go_nowhere_are_refused(tracing: dict[str, object], told: str) -> None:
    assert told in refusal({**DEMO, "tracing": tracing})


@pytest.mark.parametrize(
    ("endpoint", "uses_grpc", "url"),
    [
        ("http://c:4317", True, "http://c:4317"),
        ("https://c/", True, "https://c"),
        ("http://c:4318", False, "http://c:4318/v1/traces"),
        ("http://c:4318/", False, "http://c:4318/v1/traces"),
        ("https://c/otlp", False, "https://c/otlp/v1/traces"),
        ("https://c/otlp/v1/traces", False, "https://c/otlp/v1/traces"),
    ],
)
def test_the_address_of_the_collector_says_how_it_is_spoken_to(endpoint: str, uses_grpc: bool, url: str) -> None:
    config = load_config({**DEMO, "tracing": {"endpoint": endpoint}}, NO_GPU).tracing
    assert (config.uses_grpc, config.traces_url) == (uses_grpc, url)


def test_vllm_is_told_where_its_spans_go(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER")
    for name in names:  # so that they are taken away again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    assert vllm_tracing.prepare(TracingConfig()) == []
    assert not [name for name in names if name in os.environ]
    told = vllm_tracing.prepare(TracingConfig(endpoint="http://c:4318"))
    assert told == ["--otlp-traces-endpoint", "http://c:4318/v1/traces"]
    assert parse([*told, "--model", "x"], serve_parser()).otlp_traces_endpoint == told[1]
    assert [os.environ.get(name) for name in names] == ["http/protobuf", None, "parentbased_always_off"]


def test_an_engine_flag_does_not_say_where_traces_go() -> None:
    with pytest.raises(BadFlag, match=r"`otlp-traces-endpoint` is set by `tracing\.endpoint`"):
        argv_of({"otlp-traces-endpoint": "http://c:4317"}, serve_parser())


def test_an_unknown_profile_is_refused_with_the_nearest_one() -> None:
    assert "did you mean `h100-x8`?" in refusal({"profile": "h100x8"})


def test_counts_that_contradict_each_other_are_refused() -> None:
    assert "max (1) is below min (3)" in refusal({**DEMO, "replicas": {"min": 3}})
    assert "initial (5) is not between" in refusal({**DEMO, "replicas": {"initial": 5}})


def test_gpus_must_be_what_the_parallel_sizes_multiply_to() -> None:
    told = refusal({"profile": "h100-x8", "engine": {"flags": {"tensor-parallel-size": 4}}})
    assert "replicas.gpus_per_replica is 8, but the parallel sizes in engine.flags multiply to 4" in told


def test_nothing_changes_once_it_is_read() -> None:
    config = load_config(DEMO, NO_GPU)
    with pytest.raises(ValueError, match="frozen"):
        config.profile = "other"  # type: ignore[misc]


@pytest.mark.parametrize("alias", ["*-4", "a*b", ""])
def test_a_star_in_the_middle_of_an_alias_is_refused(alias: str) -> None:
    assert "one `*` is allowed" in refusal({**DEMO, "model": {"aliases": [alias]}})


def test_the_same_key_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(BadYaml, match=r"x:3: `a` is here a second time \(first on line 1\)"):
        parse_yaml("a: 1\nb: 2\na: 3\n", "x")


def test_broken_yaml_is_refused_with_its_line() -> None:
    with pytest.raises(BadYaml, match="x:2: mapping values are not allowed here"):
        parse_yaml("a: 1\nb: c: 2\n", "x")


def test_a_hub_id_stays_and_a_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("stepfun-ai/Step-3.7-Flash") == "stepfun-ai/Step-3.7-Flash"
    assert resolve("models/not-there") == str(ROOT / "models/not-there")
    assert resolve("/models/x") == "/models/x"
    (tmp_path / "mine").mkdir()
    assert resolve("./mine") == str(tmp_path / "mine")


# ---- vLLM's own parser -----------------------------------------------------------------------------------------------


def test_vllm_reads_every_shipped_profile() -> None:
    parser = serve_parser()
    for name in profile.profile_names():
        config = load_config({"profile": name}, NO_GPU)
        namespace = parse(engine_argv(config), parser)
        assert namespace.max_num_seqs == config.engine.flags["max-num-seqs"]
        assert namespace.distributed_executor_backend == "mp"
        assert namespace.reasoning_parser == namespace.tool_call_parser == "step3p5"
        assert namespace.speculative_config == {"method": "mtp", "num_speculative_tokens": 3}
        assert namespace.default_chat_template_kwargs == {"reasoning_effort": "medium"}


def test_an_engine_over_several_nodes_runs_on_ray() -> None:
    config = load_config({"profile": "h100-x8", "replicas": {"nodes_per_replica": 2}}, NO_GPU)
    assert parse(engine_argv(config), serve_parser()).distributed_executor_backend == "ray"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max-num-sekqs": 3}, "unrecognized arguments: --max-num-sekqs; did you mean `max-num-seqs`?"),
        ({"port": 1}, "`port` is set by `http_options.port in deploy.yaml`"),
        ({"max-model-len": "abc"}, "argument --max-model-len: invalid human_readable_int_or_auto value: 'abc'"),
        ({"max-num-seqs": None}, "engine.flags.max-num-seqs is not set"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_in_vllms_own_words(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        engine_argv(load_config({**DEMO, "engine": {"flags": flags}}, NO_GPU))


def test_flags_of_every_kind_become_words() -> None:
    words = argv_of(
        {
            "enable_prefix_caching": False,
            "enforce-eager": True,
            "max-model-len": "auto",
            "compilation-config": {"mode": 0},
            "stream-interval": 2,
            "cudagraph-capture-sizes": [1, 2],
        },
        serve_parser(),
    )
    namespace = parse(["--model", "m", *words], serve_parser())
    assert namespace.enable_prefix_caching is False
    assert namespace.enforce_eager is True
    assert namespace.max_model_len == -1
    assert namespace.stream_interval == 2
    assert namespace.cudagraph_capture_sizes == [1, 2]


def test_every_switch_of_vllm_is_off_where_the_configuration_says_false() -> None:
    parser = serve_parser()
    switches = {
        action.option_strings[0].removeprefix("--"): action.dest
        for action in parser._actions
        if action.nargs == 0 and action.option_strings[0].removeprefix("--") not in {*OWNED, *UNREAD}
    }
    assert {"enable-prefix-caching", "enable-chunked-prefill", "enforce-eager"} <= set(switches)
    words = argv_of(dict.fromkeys(switches, False), parser)
    namespace = vars(parse(["--model", "m", *words], parser))
    assert {name: namespace[dest] for name, dest in switches.items()} == dict.fromkeys(switches, False)


def test_a_switch_that_vllm_decides_and_nobody_can_turn_off_is_refused() -> None:
    with pytest.raises(BadFlag, match="cannot be passed to vLLM"):
        argv_of({"on": False}, _one_flag("on", action="store_const", const=True))


def test_a_value_that_begins_with_a_dash_is_a_value() -> None:
    words = argv_of({"served-model-name-x": "-1"}, _one_flag("served-model-name-x"))
    assert words == ["--served-model-name-x=-1"]
    with pytest.raises(BadFlag, match="unrecognized"):
        argv_of({"nothing": 1}, _one_flag("something"))


def _one_flag(name: str, **options: Any):  # type: ignore[no-untyped-def]  # noqa: ANN202
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{name}", **options)
    return parser


# ---- the shipped files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile.profile_names())
def test_a_profiles_comment_states_what_the_arithmetic_gives(name: str) -> None:
    config = load_config({"profile": name}, NO_GPU)
    shape, layout = shape_of(config), layout_of(config)
    text = " ".join(re.sub(r"\n#\s*", " ", (profile.PROFILES / f"{name}.yaml").read_text()).split())
    if shape is None or layout is None:
        assert config.profile == "cpu-demo"
        return
    room = memory.memory_capacity(shape, layout)
    sessions = [room.sessions(tokens) for tokens in SESSION_TOKENS.values()]
    assert f"{room.weights_bytes / memory.GB:.1f} GB of weights per GPU" in text
    assert f"room for {room.tokens() / 1e6:.2f} M tokens" in text
    assert "{} sessions of 32k tokens, {} of 100k or {} of 256k".format(*sessions) in text
    assert "Estimated" in text


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("b200-x4", ("1,597", "~53", "2,183", "25,629", "18.8")),
        ("h100-x8", ("1,245", "~42", "2,995", "35,018", "24.0", "eager")),
        ("a100-x8", ("474", "~17", "13,646", "99,982", "60.1", "eager")),
    ],
)
def test_a_published_layout_has_the_published_flags_and_figures(name: str, figures: tuple[str, ...]) -> None:
    config = load_config({"profile": name}, NO_GPU)
    published = {
        "tensor-parallel-size": config.replicas.gpus_per_replica,
        "enable-expert-parallel": True,
        "speculative-config": {"method": "mtp", "num_speculative_tokens": 3},
        "reasoning-parser": "step3p5",
        "tool-call-parser": "step3p5",
        "enable-auto-tool-choice": True,
        "trust-remote-code": True,
        "gpu-memory-utilization": 0.9,
        "max-model-len": "auto",
    }
    assert published.items() <= config.engine.flags.items()
    assert config.engine.env["VLLM_USE_DEEP_GEMM"] == "0"
    assert config.model.served_name == "step3p7-flash"
    text = (profile.PROFILES / f"{name}.yaml").read_text()
    assert all(figure in text for figure in figures)


def test_the_page_about_the_configuration_is_current() -> None:
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == docs.configuration_page(), "run `python -m serve_app docs`"


def test_every_key_is_explained() -> None:
    sections = [AppConfig, *(docs._section(field) for field in AppConfig.model_fields.values())]
    bare = [
        f"{section.__name__}.{name}"
        for section in sections
        if section is not None
        for name, field in section.model_fields.items()
        if not field.description and docs._section(field) is None
    ]
    assert bare == []


def test_a_key_of_the_args_is_told_with_deploy_yamls_line() -> None:
    document = parse_yaml("profile: cpu-demo\nreplicas:\n  mim: 2\n", "deploy.yaml")
    with pytest.raises(ConfigError, match=r"deploy\.yaml:3: unknown key `replicas\.mim`"):
        profile.load(document, NO_GPU)


def test_auto_without_a_cluster_to_look_at_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a running Ray cluster"):
        profile.load(YamlDocument("x", {}, {}), None)
