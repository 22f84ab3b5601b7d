"""A plan has the prompts, schedule and forced lengths of its options, and refuses what cannot be measured."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.api.requests import Api
from loadtest.data.prompt import DatasetSpec, Prompt
from loadtest.errors import DataError, TargetError, UsageError
from loadtest.http.probe import ServedModel
from loadtest.load.plan import (
    DEFAULT_CONCURRENCY,
    DEFAULT_PROMPTS,
    PROMPTS_PER_TIMED_RUN,
    LoadPlan,
    TargetSpec,
    check_lengths,
    find_server,
    make_plan,
    tokenizer_for,
    warmup_job,
)
from loadtest.load.schedule import LoadSpec, parse_phases
from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer
from tests.loadtest.conftest import ROOT, endpoint_of

STEP_TINY = str(ROOT / "models" / "step-tiny")
NATURAL = DatasetSpec(dataset="natural", input_len=20, output_len=4)
TARGET = TargetSpec("http://127.0.0.1:1", headers={"authorization": "Bearer k"})


def plan_of(
    data: DatasetSpec, load: LoadSpec | None = None, *, target: TargetSpec = TARGET, model: ServedModel | None = None
) -> LoadPlan:
    return make_plan(target, data, load or LoadSpec(), endpoint_of(target.url), model or ServedModel("m"))


def write_lines(path: Path, *rows: object) -> str:
    file = path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def test_a_closed_loop_has_vllms_number_of_prompts_and_no_times() -> None:
    job = plan_of(NATURAL).job
    assert (len(job.prompts), job.load.times_s, job.load.max_inflight) == (DEFAULT_PROMPTS, None, DEFAULT_CONCURRENCY)
    assert (job.body_spec.model, job.headers) == ("m", TARGET.headers)
    job = plan_of(replace(NATURAL, num_prompts=7), LoadSpec(concurrency=3)).job
    assert (len(job.prompts), job.load.max_inflight) == (7, 3)


def test_a_closed_loop_with_a_duration_has_enough_prompts() -> None:
    job = plan_of(replace(NATURAL, input_len=1), LoadSpec(duration_s=5)).job
    assert (len(job.prompts), job.load.stop_after_s) == (PROMPTS_PER_TIMED_RUN, 5)


def test_an_open_loop_with_a_duration_has_prompts_beyond_its_end() -> None:
    job = plan_of(NATURAL, LoadSpec(rate=50, duration_s=4)).job
    times_s = job.load.times_s or ()
    assert len(job.prompts) == len(times_s) == 250
    assert times_s[0] == 0 and times_s[-1] > 4
    assert job.load.max_inflight is None


def test_the_prompts_do_not_depend_on_the_load() -> None:
    data = replace(NATURAL, num_prompts=5)
    closed, opened = plan_of(data).job, plan_of(data, LoadSpec(rate=3)).job
    assert list(closed.prompts) == list(opened.prompts)
    assert plan_of(data, LoadSpec(rate=3)).job.load.times_s == opened.load.times_s
    assert plan_of(replace(data, seed=1), LoadSpec(rate=3)).job.load.times_s != opened.load.times_s


def test_in_an_open_loop_sessions_have_the_times() -> None:
    data = DatasetSpec(dataset="sessions", input_len=20, turns=3, num_prompts=9)
    assert len(plan_of(data, LoadSpec(rate=3)).job.load.times_s or ()) == 3
    job = plan_of(replace(data, num_prompts=0), LoadSpec(phases="10s@2", burstiness=math.inf)).job
    assert (len(job.load.times_s or ()), len(job.prompts)) == (20, 60)


def test_phases_fix_the_number_of_requests() -> None:
    load = LoadSpec(phases="5s@2,5s@6", burstiness=math.inf)
    times_s = plan_of(NATURAL, load).job.load.times_s or ()
    assert len(times_s) == 40
    assert sum(time_s < 5 for time_s in times_s) == 10
    with pytest.raises(UsageError, match="--phases fixes the number of requests"):
        plan_of(replace(NATURAL, num_prompts=3), load)


@pytest.mark.parametrize("text", ["5s@1.2.3", ".@2", "5@.", "1.1.1s@2"])
def test_numbers_of_a_phase_are_checked(text: str) -> None:
    with pytest.raises(UsageError, match="not a phase"):
        parse_phases(text)


def test_a_phase_without_requests_is_a_pause() -> None:
    times_s = plan_of(NATURAL, LoadSpec(phases="2s@5,3s@0,2s@5", burstiness=math.inf)).job.load.times_s or ()
    assert len(times_s) == 20
    assert not [time_s for time_s in times_s if 2 < time_s < 5]
    assert times_s[-1] <= 7


def test_a_rate_must_be_above_zero() -> None:
    for load in (LoadSpec(rate=0), LoadSpec(rate=2, burstiness=0)):
        with pytest.raises(UsageError, match="must be above 0"):
            plan_of(NATURAL, load)


def test_a_trace_has_its_own_times_and_forced_lengths(tmp_path: Path) -> None:
    rows = [{"timestamp": 1000 * n, "input_length": 9, "output_length": 4} for n in range(4)]
    load = LoadSpec(trace=write_lines(tmp_path, *rows), trace_speed=2.0)
    job = plan_of(NATURAL, load).job
    assert job.load.times_s == (0.0, 0.5, 1.0, 1.5)
    assert job.body_spec.ignore_eos


def test_every_line_of_a_file_is_sent_once_by_default(tmp_path: Path) -> None:
    file = write_lines(tmp_path, *({"prompt": f"{n}"} for n in range(5)))
    assert [prompt.text for prompt in plan_of(DatasetSpec(dataset="jsonl", file=file)).job.prompts] == list("01234")


def test_lengths_are_forced_for_made_up_prompts_unless_the_user_decides() -> None:
    target = replace(TARGET, tokenizer=STEP_TINY)
    random = DatasetSpec(dataset="random", input_len=9, num_prompts=2)
    assert plan_of(random, target=target).job.body_spec.ignore_eos
    assert not plan_of(replace(random, ignore_eos=False), target=target).job.body_spec.ignore_eos
    assert not plan_of(replace(NATURAL, num_prompts=2)).job.body_spec.ignore_eos
    assert plan_of(replace(NATURAL, num_prompts=2, ignore_eos=True)).job.body_spec.ignore_eos


@pytest.mark.parametrize("name", ["sessions", "images", "tools"])
def test_the_completions_api_refuses_what_it_cannot_carry(name: str) -> None:
    data = DatasetSpec(dataset=name, input_len=9, num_prompts=1, image_size=(4, 4))
    with pytest.raises(UsageError, match=f"cannot carry {name}.*--api chat"):
        plan_of(data, target=replace(TARGET, api=Api.COMPLETIONS))


def test_prompts_that_do_not_fit_the_model_are_refused_before_they_are_sent() -> None:
    prompts = [Prompt(prompt_tokens=50, output_tokens=50), Prompt(prompt_tokens=60, output_tokens=41)]
    with pytest.raises(UsageError, match=r"101 tokens of prompt and answer do not fit the model's 100.*--input-len"):
        check_lengths(prompts, ServedModel("m", max_model_len=100))
    check_lengths(prompts, ServedModel("m", max_model_len=101))
    check_lengths(prompts, ServedModel("m"))
    with pytest.raises(DataError, match="no prompt"):
        check_lengths([], ServedModel("m"))


def test_the_tokenizer_is_the_named_one_or_that_of_the_model_on_this_machine(tmp_path: Path) -> None:
    assert tokenizer_for(TARGET, ServedModel("m")) is None
    assert tokenizer_for(TARGET, ServedModel("m", root=str(tmp_path))) is None
    beside = tokenizer_for(TARGET, ServedModel("m", root=STEP_TINY))
    assert beside is not None and beside.source == STEP_TINY
    named = tokenizer_for(replace(TARGET, tokenizer=f"{STEP_TINY}/tokenizer.json"), ServedModel("m", root=STEP_TINY))
    assert named is not None and named.source.endswith("tokenizer.json")


def test_the_warm_up_has_prompts_of_its_own() -> None:
    data = replace(NATURAL, num_prompts=5)
    assert warmup_job(plan_of(data)) is None
    plan = plan_of(data, LoadSpec(warmup=3, rate=4, concurrency=2))
    warmup = warmup_job(plan)
    assert warmup is not None
    assert len(warmup.prompts) == 3
    assert not {prompt.text for prompt in warmup.prompts} & {prompt.text for prompt in plan.job.prompts}
    assert (warmup.load.max_inflight, warmup.load.times_s) == (2, None)
    assert warmup.request_id_prefix == plan.job.request_id_prefix + "warmup-"


def test_runs_have_request_ids_of_their_own() -> None:
    first, second = (plan_of(replace(NATURAL, num_prompts=1)).job for _ in range(2))
    assert first.request_id_prefix != second.request_id_prefix


async def test_the_server_and_its_model_are_found(start_mock: Callable[..., Awaitable[MockServer]]) -> None:
    server = await start_mock(MockConfig(model="step", root="/models/step", api_key="secret"))
    target = TargetSpec(server.url, headers={"authorization": "Bearer secret"})
    endpoint, served = await find_server(target)
    assert (endpoint, served) == (endpoint_of(server.url), ServedModel("step", "/models/step", 262144))
    with pytest.raises(TargetError, match="refuses the key"):
        await find_server(TargetSpec(server.url))
