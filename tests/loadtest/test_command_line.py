"""The commands as a user meets them: one line for every mistake, files that others can read, a fast start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.cli.main import main, read_args
from loadtest.errors import UsageError
from tests.loadtest.conftest import mock_process

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "models" / "step-tiny"


def run_quick(url: str, *flags: str) -> int:
    return main(["run", "--url", url, "--num-prompts", "6", "--dataset-name", "natural", "--input-len", "20",
                 "--output-len", "5", "--max-concurrency", "3", "--quiet", *flags])  # fmt: skip


def test_it_starts_without_the_engines_libraries() -> None:
    script = (
        "import sys, loadtest.cli.main, loadtest.commands.run; "
        "print([name for name in ('ray', 'vllm', 'torch', 'transformers', 'aiohttp') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_writes_the_files_asked_for(mock_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: tmp_path / "deep" / f"result.{kind}" for kind in ("json", "csv", "md", "html")}
    flags = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    code = run_quick(
        mock_url,
        *flags,
        "--save-detailed",
        "--keep-text",
        "--slo",
        "ttft_p99<10s",
        "--label",
        "mine",
        "--metadata",
        "gpu=none",
    )
    assert code == 0
    assert "Latency as vLLM's benchmark defines it" in capsys.readouterr().out
    found = json.loads(files["json"].read_text())
    wanted = (
        "date endpoint_type backend label model_id tokenizer_id num_prompts request_rate burstiness max_concurrency "
        "duration "
        "completed failed total_input_tokens total_output_tokens request_throughput request_goodput "
        "output_throughput total_token_throughput input_lens output_lens ttfts itls latencies start_times queue_times "
        "generated_texts errors "
        "max_output_tokens_per_s max_concurrent_requests rtfx mean_ttft_ms median_ttft_ms std_ttft_ms p99_ttft_ms "
        "mean_tpot_ms "
        "mean_itl_ms p99_itl_ms mean_e2el_ms gpu loadtest"
    ).split()
    assert set(wanted) <= set(found)
    assert found["request_rate"] == "inf"
    assert found["completed"] == 6
    assert found["generated_texts"] == [" word" * 5] * 6
    assert found["loadtest"]["objectives"][0]["met"] is True
    assert len(files["csv"].read_text().splitlines()) == 7
    assert files["md"].read_text().startswith("# Load test: mine: mock at http://")


@pytest.mark.engine
def test_vllms_own_reader_accepts_the_file(mock_url: str, tmp_path: Path) -> None:
    from vllm.benchmarks.sweep.plot import _json_load_bytes as load  # the reader of `vllm bench sweep plot`

    file = tmp_path / "result.json"
    assert run_quick(mock_url, "--json", str(file)) == 0
    assert load(file)["output_throughput"] > 0


def test_the_page_needs_nothing_from_outside(mock_url: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert run_quick(mock_url, "--html", str(file), "--label", "</script><b>x") == 0
    page = file.read_text()
    for reference in ("src=", "href=", "@import", "url(", "https://"):
        assert reference not in page
    assert "<b>x" not in page
    assert page.count("<script") == page.count("</script>") == 2


MISTAKES = {
    ("run", "--url", "http://127.0.0.1:9"): (3, "Is the server running"),
    ("run", "--url", "http://nowhere.invalid"): (3, "Check --url"),
    ("run", "--url", "ftp://x"): (2, "http://host:8000"),
    ("run", "--nonsense"): (2, "--help"),
    ("run", "--max-concurrency", "0"): (2, "at least 1"),
    ("run", "--request-rate", "3", "--phases", "1s@1"): (2, "Choose one"),
    ("run", "--slo", "ttft<3s"): (2, "_p99"),
    ("run", "--slo", "ttft_p99<1.2.3s"): (2, "ttft_p99<3s"),
    ("run", "--slo", "ttft_p999<3s"): (2, "p99.9"),
    ("run", "--metric-percentiles", "50,101"): (2, "0 to 100"),
    ("run", "--num-prompts", "-1"): (2, "at least 1"),
    ("run", "--html", "/dev/null/page.html"): (4, "another place"),
    ("run", "--json", "/"): (4, "folder"),
    ("run", "--extra-body", "{"): (2, "is not JSON"),
    ("run", "--header", "x"): (2, "name=value"),
    ("run", "--quick"): (2, "--preset"),
    ("run", "--goodput", "foo:1"): (2, "ttft:3000"),
    ("run", "--at", "x:y"): (2, "30:kill"),
    ("search", "--url", "x"): (2, "--slo"),
    ("compare", "/nope.json", "/nope.json"): (4, "cannot read"),
    ("compare", "/nope.json"): (2, "Name the base first"),
    ("selftest", "--streams", "many"): (2, "whole number"),
    ("selftest", "--streams", "0"): (2, "at least 1"),
    ("selftest", "--streams", "1", "--chunks", "2", "--against", "no-such-program"): (4, "--against"),
    ("selftest", "--rounds", "0"): (2, "at least 1"),
    ("mock", "--port", "99999"): (2, "at most 65535"),
    ("run", "--assert", ""): (2, "--assert: is empty"),
    ("run", "--slo", " "): (2, "--slo: is empty"),
    ("run", "--request-rate", "nan"): (2, "--request-rate: takes a number"),
    ("run", "--request-rate", "0"): (2, "--request-rate: must be above 0"),
    ("run", "--duration", "nan"): (2, "--duration"),
    ("run", "--timeout", "0"): (2, "above 0"),
    ("run", "--think-time", "-1"): (2, "--think-time: takes a time"),
    ("run", "--num-warmups", "-3"): (2, "at least 0"),
    ("run", "--seed", "-1"): (2, "at least 0"),
    ("run", "--turns", "0"): (2, "at least 1"),
    ("run", "--range-ratio", "1.5"): (2, "below 1"),
    ("run", "--image-size", "0x0"): (2, "448x448"),
    ("run", "--workers", "99999"): (2, "from 1 to 64"),
    ("run", "--header", "x=a\r\nhost: b"): (2, "name=value"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, hint = MISTAKES[words]
    assert main(words) == code
    printed = capsys.readouterr().err
    assert printed.startswith("loadtest: ")
    assert printed.count("\n") == 1
    assert hint in printed


def test_mistakes_that_only_the_server_knows(mock_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_quick(mock_url, "--model", "other") == 3
    assert run_quick(mock_url, "--output-len", "300000") == 2
    assert run_quick(mock_url, "--dataset-name", "random") == 4
    assert run_quick(mock_url, "--assert", "ttft_p99<1ms", "--assert", "failed<1%") == 1
    printed = capsys.readouterr().err.splitlines()
    assert "It serves: mock" in printed[0]
    assert "do not fit" in printed[1]
    assert "--tokenizer" in printed[2]
    assert printed[3].startswith("loadtest: not met: ttft_p99<1ms (is ")


def test_a_port_in_use_is_an_error(mock_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mock", "--port", mock_url.rpartition(":")[2]]) == 2
    assert "Address already in use). Choose another" in capsys.readouterr().err


def test_a_key_is_required(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with mock_process("--api-key", "s3cret", "--first-ms", "1") as url:
        assert run_quick(url) == 3
        assert run_quick(url, "--api-key", "s3cret") == 0
        monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
        assert run_quick(url, "--api", "messages") == 0
    assert "refuses the key (HTTP 401). Give it with --api-key" in capsys.readouterr().err


def test_flags_win_over_a_preset() -> None:
    args = read_args(["run", "--preset", "published-8k-2k"])
    assert (args.input_len, args.output_len, args.num_prompts, args.concurrency) == (8192, 2048, 512, 32)
    args = read_args(["run", "--preset", "published-8k-2k", "--input-len", "64", "--quick"])
    assert (args.input_len, args.output_len, args.num_prompts) == (64, 2048, 96)
    with pytest.raises(UsageError):
        read_args(["run", "--preset", "other"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset-name", "natural"], ["--dataset-name", "sessions", "--turns", "2"], ["--dataset-name", "tools"],
        ["--dataset-name", "images", "--image-size", "32x16"], ["--dataset-name", "prefixes", "--input-len", "40"],
        ["--dataset-name", "random", "--input-len", "40"], ["--request-rate", "200"],
        ["--dataset-name", "tools", "--api", "messages"], ["--dataset-name", "images", "--api", "messages"],
    ],
)  # fmt: skip
def test_every_data_set_runs(mock_url: str, flags: list[str]) -> None:
    assert run_quick(mock_url, "--tokenizer", str(TOKENIZER), *flags, "--assert", "failed<1%") == 0


def test_a_run_without_any_success_ends_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with mock_process("--fail-every", "1", "--fault", "full") as url:
        assert run_quick(url) == 3
    printed = capsys.readouterr()
    assert "6 ended as full_429. The server is full: lower --max-concurrency" in printed.err
    assert "retry after 7 s" in printed.err
    assert "no request is retried" in printed.out


@pytest.mark.slow
def test_the_selftest_judges_the_client_beside_another(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "selftest.json"
    other = tmp_path / "other.py"
    other.write_text("""print('{"ttft_mean_ms": 70.5, "gap_p99_ms": 1.0, "cpu_us_per_chunk": 1e9}')""")
    flags = [
        "--streams",
        "2",
        "--chunks",
        "5",
        "--rounds",
        "2",
        "--json",
        str(file),
        "--against",
        f"{sys.executable} {other}",
    ]
    assert main(["selftest", *flags]) in (0, 1)
    (reading,) = json.loads(file.read_text())
    assert reading["other"]["added_ttft_ms"] == pytest.approx(20.5)
    assert main(["selftest", "--streams", "1", "--chunks", "2", "--against", "true"]) == 4
    assert reading["chunks"] == 2 * 2 * 6, "two waves of two streams; five texts and the role"
    assert reading["failed"] == 0
    printed = capsys.readouterr()
    assert "client adds" in printed.out
    assert "this client uses 0.00 times that" in printed.out
    assert "did not print its figures" in printed.err


def test_recovery_after_a_load_step_needs_no_fleet(mock_url: str, tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    flags = (
        "--dataset-name",
        "natural",
        "--phases",
        "1s@10,1s@30",
        "--slo",
        "ttft_p50<5s",
        "--json",
        str(file),
        "--quiet",
    )
    assert main(["run", "--url", mock_url, "--output-len", "3", *flags]) == 0
    fleet = json.loads(file.read_text())["loadtest"]["fleet"]
    assert fleet["recoveries"] == [[1.0, 0.0]]
    assert fleet["at_s"] == []
