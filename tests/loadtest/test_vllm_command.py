"""Commands written for `vllm bench serve` work behind `python -m loadtest run`."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loadtest.api.requests import Api
from loadtest.cli import vllm_command
from loadtest.cli.main import main, read_args
from loadtest.cli.options import output_spec, target_spec
from loadtest.errors import UsageError

PUBLISHED = """--backend openai-chat --model stepfun-ai/Step-3.7-Flash --dataset-name random --random-input-len 8192
--random-output-len 2048 --num-prompts 512 --max-concurrency 32 --endpoint /v1/chat/completions"""
NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


def run_args(text: str) -> argparse.Namespace:
    return read_args(["run", *shlex.split(text)])


def test_the_published_command_is_the_preset() -> None:
    args, preset = run_args(PUBLISHED), run_args("--preset published-8k-2k --model stepfun-ai/Step-3.7-Flash")
    names = ("api", "dataset", "input_len", "output_len", "num_prompts", "concurrency", "rate", "seed", "url", "model")
    assert [getattr(args, name) for name in names] == [getattr(preset, name) for name in names]
    assert args.preset == "published-8k-2k", "so it is compared with the published results, too"
    assert run_args(PUBLISHED + " --request-rate 4").preset is None
    assert run_args(PUBLISHED + " --num-prompts 64").preset is None


@pytest.mark.parametrize(
    ("flags", "url"),
    [
        ("", "http://127.0.0.1:8000"), ("--port 8001", "http://127.0.0.1:8001"), ("--host gpu", "http://gpu:8000"),
        ("--host ::1 --port 9", "http://[::1]:9"), ("--base-url http://a:1", "http://a:1"),
        ("--base-url http://a:1/ --endpoint /proxy/v1/chat/completions", "http://a:1/proxy"),
        ("--backend vllm --endpoint /v1/completions", "http://127.0.0.1:8000"),
    ],
)  # fmt: skip
def test_the_server_is_found_where_vllm_would_look(flags: str, url: str) -> None:
    assert target_spec(run_args(flags)).url == url


@pytest.mark.parametrize(
    ("flags", "api"),
    [("", Api.CHAT), ("--backend openai-chat", Api.CHAT), ("--backend vllm", Api.COMPLETIONS),
     ("--backend openai", Api.COMPLETIONS), ("--api messages", Api.MESSAGES)],
)  # fmt: skip
def test_a_backend_is_an_api(flags: str, api: Api) -> None:
    assert target_spec(run_args(flags)).api is api


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--backend openai-chat --api messages", "--api messages contradicts --backend openai-chat"),
        ("--backend openai-chat --endpoint /v1/completions", "path ends with /v1/chat/completions"),
        ("--url http://a --port 8001", "replace --url"),
        ("--percentile-metrics ttft,speed", "has no 'speed'"),
        ("--result-dir there", "need --save-result"),
        ("--result-dir there --save-detailed", "need --save-result"),
        ("--backend sglang", "invalid choice: 'sglang'"),
    ],
)
def test_what_contradicts_itself_is_refused(flags: str, problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        run_args(flags)


def test_the_model_has_two_names_and_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    args = run_args(f"--model {tmp_path} --served-model-name step3p7-flash")
    assert (args.model, args.tokenizer) == ("step3p7-flash", str(tmp_path))
    assert run_args(f"--model {tmp_path} --tokenizer other").tokenizer == "other"
    assert run_args("--model stepfun-ai/Step-3.7-Flash").tokenizer is None


def test_a_result_is_named_as_vllm_names_it() -> None:
    from vllm.benchmarks.serve import add_cli_args, compute_result_filename

    theirs = argparse.ArgumentParser()
    add_cli_args(theirs)
    words = shlex.split(PUBLISHED + " --save-result --result-dir results")
    args = read_args(["run", *words])
    args.json = None
    vllm_command.translate(args, NOW)
    expected = compute_result_filename(theirs.parse_args(words), args.model, "", f"{NOW:%Y%m%d-%H%M%S}")
    assert output_spec(args).json == expected
    assert output_spec(run_args("--save-result --result-filename a.json --result-dir b")).json == "b/a.json"


def test_flags_that_both_have_are_read_alike() -> None:
    from vllm.benchmarks.serve import add_cli_args

    theirs = argparse.ArgumentParser()
    add_cli_args(theirs)
    known = {flag for action in theirs._actions for flag in action.option_strings}
    ours = argparse.ArgumentParser()
    vllm_command.FLAGS.add_to(ours)
    added = {flag for action in ours._actions for flag in action.option_strings} - {"-h", "--help"}
    assert added <= known, "the group says that vLLM has them"
    shared = """--base-url --dataset-name --dataset-path --num-prompts --random-input-len --random-output-len
    --random-range-ratio --random-prefix-len --max-concurrency --request-rate --burstiness --num-warmups --seed
    --ignore-eos --metric-percentiles --goodput --save-detailed --label --metadata --header --extra-body --tokenizer
    --temperature --top-p --top-k --insecure""".split()
    assert set(shared) <= known
    flags = {"--ignore-eos": "", "--insecure": "", "--save-detailed": "", "--metadata": "a=b", "--header": "a=b c=d"}
    texts = {"--dataset-name": "random", "--goodput": "ttft:3000", "--extra-body": "{}", "--base-url": "http://a"}
    for flag in shared:
        run_args(f"{flag} {(flags | texts).get(flag, '0.5' if 'ratio' in flag else '1')}")


def test_the_command_runs_and_writes_vllms_file(mock_url: str, tmp_path: Path) -> None:
    words = PUBLISHED.replace("8192", "32").replace("2048", "4").replace("512", "8").replace("random --", "natural --")
    words = words.replace("stepfun-ai/Step-3.7-Flash", "mock")
    more = f"--base-url {mock_url} --save-result --result-dir {tmp_path} --disable-tqdm --percentile-metrics ttft,itl"
    assert main(["run", *shlex.split(f"{words} {more}")]) == 0
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"openai-chat-infqps-concurrency32-mock-\d{8}-\d{6}\.json", file.name)
    found: dict[str, Any] = json.loads(file.read_text())
    assert (found["backend"], found["completed"], found["max_concurrency"]) == ("openai-chat", 8, 32)


def test_an_unknown_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--ramp-up-strategy", "linear"]) == 2
    assert "--ramp-up-strategy" in capsys.readouterr().err
