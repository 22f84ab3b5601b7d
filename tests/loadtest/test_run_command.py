"""`run` from flags to files: commands during the run, the fleet, compare, and the flags' own checks."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.api.requests import Api
from loadtest.cli import main as cli
from loadtest.cli.main import COMMANDS, build_parser, main, read_args
from loadtest.cli.options import data_spec, fleet_spec, load_spec, output_spec, target_spec
from loadtest.commands.selftest import OtherClient, SelfTestResult, median_result, selftest_table
from loadtest.data.prompt import DatasetSpec
from loadtest.errors import UsageError
from loadtest.fleet.poller import FleetSpec
from loadtest.load.schedule import LoadSpec
from loadtest.metrics.summary import SummarySpec
from loadtest.report.files import OutputSpec
from loadtest.report.table import text_table
from tests.loadtest.conftest import ROOT

NATURAL = ("--dataset-name", "natural", "--input-len", "20", "--output-len", "4", "--quiet")


def run(url: str, *flags: str) -> int:
    return main(["run", "--url", url, *NATURAL, *flags])


def loadtest_part(file: Path) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(file.read_text())["loadtest"]
    return part


def test_a_command_runs_at_its_time_and_is_on_the_axis(mock_url: str, tmp_path: Path) -> None:
    file, made = tmp_path / "run.json", tmp_path / "made"
    commands = (f"0.2:touch {shlex.quote(str(made))}", "0.1s:exit 3", "3600:touch never")
    at = [word for command in commands for word in ("--at", command)]
    flags = ("--request-rate", "20", "--num-prompts", "24", "--slo", "ttft_p90<5s", "--json", str(file), *at)
    assert run(mock_url, *flags) == 0
    assert made.exists()
    fleet = loadtest_part(file)["fleet"]
    assert [(mark["at_s"], mark["kind"]) for mark in fleet["marks"]] == [(0.1, "event"), (0.1, "note"), (0.2, "event")]
    assert fleet["marks"][1]["what"] == "the command ended with exit code 3"
    assert fleet["recoveries"] == [[0.1, 0.0], [0.2, 0.0]], "one for each command"


def test_a_warmup_and_several_processes_are_reported(mock_url: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    flags = ("--num-prompts", "8", "--num-warmups", "2", "--workers", "2", "--max-concurrency", "4")
    assert run(mock_url, *flags, "--json", str(file)) == 0
    ours = loadtest_part(file)
    assert ours["client_processes"] == "2 processes, as --workers says"
    assert len(ours["client"]) == 2
    assert len(ours["requests"]["ok"]) == 8, "warm-up requests are not measured"


def test_a_lost_dashboard_fails_before_the_run(mock_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(mock_url, "--ray-dashboard", "http://127.0.0.1:9") == 3
    assert "cannot reach" in capsys.readouterr().err


def test_compare_shows_ratios_and_reasons(mock_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, other = tmp_path / "a.json", tmp_path / "b.json"
    assert run(mock_url, "--num-prompts", "10", "--json", str(ours), "--label", "base") == 0
    found = json.loads(ours.read_text())
    found.pop("loadtest")
    found |= {"mean_ttft_ms": found["mean_ttft_ms"] * 2, "label": None, "max_concurrency": 7}
    other.write_text(json.dumps(found))
    capsys.readouterr()
    assert main(["compare", str(ours), str(other), "--md", str(tmp_path / "c.md")]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "TTFT mean ms" in line)
    assert row.split()[-1] == "2.000"
    assert "max_concurrency differs: base 32, b 7" in text
    assert "b: no interval for throughput, because vLLM writes times only with --save-detailed" in text
    assert "| TTFT mean ms |" in (tmp_path / "c.md").read_text()


def test_defaults_are_those_of_the_specifications(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    args = read_args(["run"])
    assert data_spec(args) == DatasetSpec()
    assert load_spec(args) == LoadSpec()
    assert fleet_spec(args) == FleetSpec()
    assert output_spec(args) == OutputSpec(summary=SummarySpec())
    target = target_spec(args)
    assert (target.api, target.verify, target.reuse_connections, target.headers) == (Api.CHAT, True, True, {})


def test_every_flag_reaches_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray")
    text = """run --header a=b c=d --header e=f --insecure --new-connections --timeout 9 --api messages --api-key k
    --range-ratio 0.1,0.2 --image-size 32x16 --no-ignore-eos --top-k 5 --extra-body '{"x": 1}' --max-concurrency 3
    --request-rate 2 --duration 7 --workers 4 --no-server-metrics --at 30:kill --at '1.5s:a b' --goodput ttft:3 tpot:4
    --metric-percentiles 50,99.9 --assert failed<1% --assert ttft_p99<1s --metadata k=v --no-live --save-detailed"""
    args = read_args(shlex.split(text))
    target = target_spec(args)
    assert target.headers == {
        "a": "b", "c": "d", "e": "f", "Authorization": "Bearer k", "x-api-key": "k", "anthropic-version": "2023-06-01",
    }  # fmt: skip
    assert (target.verify, target.reuse_connections, target.timeout_s, target.api) == (False, False, 9.0, Api.MESSAGES)
    data = data_spec(args)
    assert (data.input_range_ratio, data.output_range_ratio, data.image_size) == (0.1, 0.2, (32, 16))
    assert (data.ignore_eos, data.extra_body) == (False, {"top_k": 5, "x": 1})
    load = load_spec(args)
    assert (load.concurrency, load.rate, load.duration_s, load.workers) == (3, 2.0, 7.0, 4)
    assert fleet_spec(args) == FleetSpec(None, "ray", False, ((30.0, "kill"), (1.5, "a b")))
    output = output_spec(args)
    assert output.summary == SummarySpec((50.0, 99.9), {"ttft": 3.0, "tpot": 4.0}, None)
    assert (output.assertions, output.metadata) == (("failed<1%", "ttft_p99<1s"), {"k": "v"})
    assert (output.live, output.detailed) == (False, True)


WRONG = {
    "--timeout": "never", "--header": "x", "--num-prompts": "0", "--input-len": "1.5", "--range-ratio": "1",
    "--think-time": "inf", "--image-size": "big", "--seed": "-1", "--extra-body": "[]", "--max-concurrency": "no",
    "--request-rate": "-1", "--burstiness": "0", "--trace-speed": "nan", "--duration": "0", "--num-warmups": "-1",
    "--workers": "0", "--at": "60:", "--metric-percentiles": "101", "--goodput": "itl:3", "--slo": "", "--assert": " ",
    "--metadata": "=x", "--dataset-name": "poem", "--api": "rest", "--preset": "mine", "--port": "70000",
}  # fmt: skip


@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_value_is_one_line_that_names_the_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", flag, WRONG[flag]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("loadtest: argument ")
    assert flag in error.split(":")[1]
    assert error.count("\n") == 1
    assert error.endswith("See python -m loadtest run --help\n")


def test_a_flag_may_not_be_shortened() -> None:
    with pytest.raises(UsageError, match="--inp 3"):
        read_args(["run", "--inp", "3"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_every_flag_with_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for group in COMMANDS[command][1]:
        for one in group.flags:
            shown = one.options["help"] != "==SUPPRESS=="
            assert all((name in text) == shown or not shown for name in one.names)
            assert not shown or one.options["help"].split(" (")[0] in text
    if command == "run":
        assert "prompt tokens (default 1024)" in text
        assert "number of different shared prefixes (default 10)" in text


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == cli.__version__


def selftest_result(streams: int, added_ms: float, **changes: Any) -> SelfTestResult:
    result = SelfTestResult(
        streams=streams, chunks=300, failed=0, ttft_mean_ms=50 + added_ms, ttft_p99_ms=60.0, mock_first_late_ms=0.5,
        added_ttft_ms=added_ms, gap_mean_ms=20.5, gap_p99_ms=22.0, mock_chunk_late_p99_ms=0.1, cpu_us_per_chunk=12.0,
        cpu_ratio=0.25, loop_lag_p99_ms=1.0,
    )  # fmt: skip
    return replace(result, **changes)


def test_the_selftest_table_says_where_the_client_is_the_bottleneck() -> None:
    other = OtherClient(80.0, 30.0, 48.0, added_ttft_ms=29.5)
    results = [selftest_result(32, 1.0, other=other), selftest_result(512, 25.0), selftest_result(8, 1.0, failed=2)]
    lines = text_table(selftest_table(results)).splitlines()
    assert lines[0].startswith("Client self-test: 50 ms to the first token, 20 ms between chunks, 32 KB prompts")
    assert lines[2].split() == "32 51.0 ms 0.5 ms 1.0 ms 0.5 ms 22.0 ms 12.0 us 25% 1.0 ms ok".split()
    assert lines[3].endswith("  use --workers")
    assert lines[4].endswith("  2 failed")
    assert lines[5].endswith("uses 48.0 us of CPU per chunk; this client uses 0.25 times that")


def test_rounds_give_medians_and_count_every_failure() -> None:
    rounds = [selftest_result(8, added) for added in (1.0, 9.0, 2.0)]
    rounds[1] = replace(rounds[1], failed=3)
    middle = median_result(rounds)
    assert (middle.added_ttft_ms, middle.failed, middle.streams) == (2.0, 3, 8)


def documented_commands() -> list[str]:
    """The commands in the code blocks of the guide."""
    blocks = (ROOT / "docs" / "load-testing.md").read_text().split("```")[1::2]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("python -m loadtest ") for line in lines if line.startswith("python -m loadtest ")]


@pytest.mark.parametrize("command", documented_commands())
def test_every_command_of_the_guide_is_accepted(command: str) -> None:
    args = read_args(shlex.split(command))
    if args.command == "run":
        assert load_spec(args).concurrency in (8, 16, 32, 64, None)
        assert args.input_len == {None: args.input_len, "published-8k-2k": 8192, "agents": 142_000}[args.preset]
        assert (args.preset == "published-8k-2k") == (args.input_len == 8192)


def test_the_guide_has_commands_of_every_kind() -> None:
    assert {command.split()[0] for command in documented_commands()} == set(COMMANDS)
