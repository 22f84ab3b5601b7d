"""What a replica and an ingress export: the figures, and that labels stay within what is listed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from serve_app.cli import docs_metrics
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.engine.fake_metrics import COUNTERS, GAUGES, LABELS, PER_POSITION, MeteredFakeEngine
from serve_app.engine.figures import (
    ClassLoad,
    ReplicaFigures,
    SentFrames,
    StartPhase,
    StartTimes,
    load_by_class,
    timeline,
)
from serve_app.engine.key_costs import KeyCosts
from serve_app.engine.metrics import ReplicaMetrics, TotalCounter, declared
from serve_app.engine.watchdog import EngineState
from serve_app.ingress.key_metrics import KeyMetrics
from serve_app.protocol.errors import Outcome
from serve_app.protocol.key_labels import OTHER
from serve_app.protocol.liveness import RecentPeak
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, RequestSpec, TokenDelta, encode_tokens
from serve_app.protocol.service_class import ServiceClass
from serve_app.router.routing import Reason

Recorded = list[tuple[str, float, dict[str, str]]]


class Recorder:
    """Stands where a metric writes to Ray's core."""

    def __init__(self, name: str, record: Recorded) -> None:
        self._name = name
        self._record = record

    def record(self, value: float, tags: dict[str, str]) -> None:
        self._record.append((self._name, value, tags))


def recorded(metrics: Iterable[Any]) -> Recorded:
    """What these metrics record from now on: name, value and labels."""
    record: Recorded = []
    for metric in metrics:
        metric._metric = Recorder(metric.info["name"], record)
    return record


class Clock:
    """Seconds that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_load_is_summed_by_class_and_by_whether_the_engine_has_it() -> None:
    load = load_by_class(
        [
            (ServiceClass.STANDARD, True, 100),
            (ServiceClass.STANDARD, True, 50),
            (ServiceClass.STANDARD, False, 7),
            (ServiceClass.BATCH, False, 30),
        ]
    )
    assert load[ServiceClass.STANDARD] == ClassLoad(2, 150, 1, 7)
    assert load[ServiceClass.BATCH] == ClassLoad(0, 0, 1, 30)


def test_the_phases_of_a_start_are_timed_though_they_are_said_again() -> None:
    clock = Clock()
    times = StartTimes(clock)
    said = [
        (0, "loading vLLM (0 s)"),
        (4, "starting workers (4 s)"),
        (9, "loading weights (9 s)"),
        (19, "loading weights (19 s)"),
        (29, "weights loaded (29 s)"),
        (30, "compiling (30 s)"),
        (90, "capturing CUDA graphs (90 s)"),
        (95, "something new of vLLM's (95 s)"),
        (96, "warming up: a grammar (96 s)"),
        (100, "ready (100 s)"),
    ]
    for clock.now_s, words in said:
        times.note(words)
    clock.now_s = 500
    assert times.seconds() == {
        StartPhase.IMPORT: 4,
        StartPhase.PROCESSES: 5,
        StartPhase.WEIGHTS: 21,
        StartPhase.COMPILE: 60,
        StartPhase.CUDA_GRAPHS: 5,
        StartPhase.OTHER: 1,
        StartPhase.WARM_UP: 4,
    }


def test_a_download_is_taken_out_of_the_weights_and_the_process_comes_first() -> None:
    clock = Clock()
    times = StartTimes(clock, process_s=2.5)
    for clock.now_s, words in (
        (0, "loading vLLM"),
        (4, "loading weights"),
        (64, "weights downloaded in 50.000000 s"),
        (70, "profiling"),
        (75, "compiling"),
        (95, "profiling"),
        (96, "ready"),
    ):
        times.note(words)
    assert timeline(times.seconds()) == (
        "process 2.5 s, import 4.0 s, download 50.0 s, weights 16.0 s, profile 6.0 s, compile 20.0 s"
    )
    assert sum(times.seconds().values()) == 98.5


def test_a_peak_is_forgotten_after_its_time() -> None:
    peak = RecentPeak(10)
    assert peak.value(0) == 0
    for at_s, value in ((0, 3.0), (1, 5.0), (2, 1.0)):
        peak.add(value, at_s)
    assert peak.value(5) == 5
    assert peak.value(11.5) == 1
    assert peak.value(13) == 0


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_a_total_is_there_at_zero_and_never_counts_twice() -> None:
    counter = TotalCounter("gauges_test_total", "", ("cause",))
    record = recorded([counter])
    for total in (0, 0, 3, 3, 5):
        counter.set_total(total, {"cause": "cut"})
    counter.set_total(1, {"cause": "died"})
    assert [(value, tags["cause"]) for _, value, tags in record] == [(0, "cut"), (3, "cut"), (2, "cut"), (1, "died")]


async def test_a_replica_exports_its_figures_with_listed_labels_only() -> None:
    metrics = ReplicaMetrics(KeyCosts(0, lambda: None))
    record = recorded(declared(metrics))
    times = StartTimes(Clock())
    for words in ("loading weights", *(f"a phase that nobody knows: {number}" for number in range(500)), "ready"):
        times.note(words)
    sent = SentFrames()
    sent.add(b"12345")
    metrics.set(
        ReplicaFigures(
            load=load_by_class([(ServiceClass.BATCH, True, 9)]),
            state=EngineState.HUNG,
            silence_s=21.0,
            start_s=times.seconds(),
            sent=sent,
        )
    )
    values = {(name, *_own(tags)): value for name, value, tags in record}
    assert values["step_replica_inflight_tokens", "class=batch"] == 9
    assert values["step_watchdog_state", "state=hung"] == 1
    assert values["step_watchdog_state", "state=working"] == 0
    assert values["step_engine_silence_seconds",] == 21
    assert values["step_frames_sent",] == 1
    assert values["step_frame_bytes_sent",] == 5
    assert_listed(record)


def test_keys_beyond_the_bound_share_one_label() -> None:
    keys = KeyMetrics(max_keys=3)
    record = recorded(declared(keys))
    for number in range(50):
        keys.count(f"key-{number}", Outcome.OK, {"prompt": 10, "cached": 0, "output": 2})
    keys.count("key-1", Outcome.RATE_LIMITED, {"prompt": 0})
    keys.count(None, Outcome.UNAUTHENTICATED, {"prompt": 0})
    assert {tags["key"] for _, _, tags in record} == {"key-0", "key-1", "key-2", OTHER}
    requests = [(tags["key"], tags["result"]) for name, _, tags in record if name == "step_key_requests"]
    assert requests.count((OTHER, "ok")) == 47
    assert requests[-1] == ("key-1", "refused")
    assert_listed(record)


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_a_result(outcome: Outcome) -> None:
    keys = KeyMetrics()
    record = recorded(declared(keys))
    keys.count("ann", outcome, {})
    assert_listed(record)


def test_every_label_of_every_metric_is_bounded() -> None:
    """By an enum, by the routes, or by the keys file up to a bound: nothing that a user sends becomes a series."""
    for metric in (*docs_metrics.ingress_metrics(), *docs_metrics.replica_metrics()):
        for label in metric.info["tag_keys"]:
            assert label in ("route", "key") or _values(metric.info["name"], label), f"{metric.info['name']}: {label}"


def test_values_that_mean_the_same_are_written_the_same() -> None:
    assert set(docs_metrics.LABEL_VALUES["reason"]) == set(Reason)
    assert all(
        value == value.lower() and " " not in value for values in docs_metrics.LABEL_VALUES.values() for value in values
    )


def assert_listed(record: Recorded) -> None:
    """Every recorded label has a value that `docs/metrics.md` lists."""
    for name, _, tags in record:
        for label in tags:
            if label in ("application", "deployment", "replica", "route", "key"):
                continue
            assert tags[label] in _values(name, label), f"{name}: {label}={tags[label]}"


def _values(metric: str, label: str) -> Sequence[str]:
    return docs_metrics.LABEL_VALUES_OF.get((metric, label)) or docs_metrics.LABEL_VALUES.get(label, ())


def _own(tags: Mapping[str, str]) -> list[str]:
    """The labels that are ours, without Serve's."""
    return [f"{name}={value}" for name, value in tags.items() if name not in ("application", "deployment", "replica")]


# ---- the fake engine's ----------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_the_fake_engines_metrics_have_vllms_names() -> None:
    import inspect

    from vllm.v1.metrics import loggers
    from vllm.v1.spec_decode import metrics as spec_decode

    source = inspect.getsource(loggers) + inspect.getsource(spec_decode)
    assert not [name for name in (*GAUGES, *COUNTERS, PER_POSITION) if f'"vllm:{name}"' not in source]
    assert 'labelnames = ["model_name", "engine"]' in source
    assert LABELS == ("model_name", "engine", "ReplicaId")


async def test_a_fake_engine_counts_as_vllm_does() -> None:
    steps: list[Sequence[TokenDelta]] = []
    engine = MeteredFakeEngine(FakeEngineConfig(tokens_per_step=3, answer_tokens=(8, 8)), steps.append, "r1", Clock())
    record = recorded([*engine._gauges.values(), *engine._counters.values(), engine._per_position])
    await engine.start(lambda _phase: None)
    spec = RequestSpec("one", encode_tokens(list(range(100, 120))), 8, 0, True, [], 0, [])
    async with asyncio.timeout(10):
        await engine.run(AttemptRequest(WIRE_VERSION, "one:1", "i", spec, []))
    engine._wall_s = lambda: 1.0
    engine.stats()
    await engine.shutdown()
    values = {(name, tags.get("position", "")): value for name, value, tags in record}
    assert values["vllm_prompt_tokens", ""] == 20
    assert values["vllm_generation_tokens", ""] == 8
    assert values["vllm_spec_decode_num_drafts", ""] == 3  # 3 + 3 + 2 tokens
    assert values["vllm_spec_decode_num_draft_tokens", ""] == 6
    assert values["vllm_spec_decode_num_accepted_tokens", ""] == 5
    assert values["vllm_spec_decode_num_accepted_tokens_per_pos", "0"] == 3
    assert values["vllm_spec_decode_num_accepted_tokens_per_pos", "1"] == 2
    assert all(tags["ReplicaId"] == "r1" for _, _, tags in record)
