"""`promtool` on the shipped rules: they are valid, and each alert fires where it should, and only there."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.monitoring.names import rules
from tests.monitoring.prometheus import MISSING, MONITORING, RULES

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason=MISSING)

CHAT = 'route="/v1/chat/completions"'
OK = f'ray_step_requests_total{{{CHAT}, outcome="ok"}}'
FAILED = f'ray_step_requests_total{{{CHAT}, outcome="server_error"}}'
FULL = f'ray_step_requests_total{{{CHAT}, outcome="shed_queue_full"}}'
PROBES = 'ray_step_requests_total{route="/health", outcome="no_replica"}'
SOON = 'ray_step_time_to_first_token_seconds_bucket{le="5.0"}'
FIRST_TOKENS = "ray_step_time_to_first_token_seconds_count"
UP = 'ray_step_replicas{state="up", replica="%s"}'
STATE = 'ray_step_watchdog_state{replica="e1", state="%s"}'
MIGRATIONS = 'ray_step_migrations_total{cause="%s"}'
KV = 'ray_vllm_kv_cache_usage_perc{ReplicaId="e1"}'
PREEMPTIONS = 'ray_vllm_num_preemptions_total{ReplicaId="e1"}'
ACCEPTED = 'ray_vllm_spec_decode_num_accepted_tokens_total{model_name="step"}'
DRAFTED = 'ray_vllm_spec_decode_num_draft_tokens_total{model_name="step"}'
LAG = 'ray_step_event_loop_lag_seconds{replica="i1"}'
LATE = 'ray_step_frame_lateness_seconds{replica="i1"}'
SILENCE = 'ray_step_engine_silence_seconds{replica="e1"}'


@dataclass(frozen=True)
class Case:
    """What an alert is at a time: `labels` are those that it fires with, None where it does not. Series have a value a
    minute, as promtool writes them."""

    alert: str
    at: str
    series: Mapping[str, str]
    labels: Mapping[str, str] | None = None
    value: str = ""
    """As the annotation shows it."""


NONE: Mapping[str, str] = {}

CASES = (
    Case("StepErrorBudgetFastBurn", "65m", {OK: "0+95x70", FAILED: "0+5x70"}, NONE),
    Case("StepErrorBudgetFastBurn", "65m", {OK: "0+9990x70", FAILED: "0+5x70"}),
    Case("StepErrorBudgetFastBurn", "65m", {OK: "0+100x70", PROBES: "0+50x70"}),
    Case("StepErrorBudgetSlowBurn", "8h", {OK: "0+998x500", FAILED: "0+2x500"}, NONE),
    Case("StepErrorBudgetSlowBurn", "8h", {OK: "0+9995x500", FAILED: "0+5x500"}),
    Case("StepErrorBudgetFastBurn", "8h", {OK: "0+998x500", FAILED: "0+2x500"}),
    Case("StepTtftBudgetFastBurn", "65m", {SOON: "0+10x70", FIRST_TOKENS: "0+100x70"}, NONE),
    Case("StepTtftBudgetFastBurn", "65m", {SOON: "0+90x70", FIRST_TOKENS: "0+100x70"}),
    Case("StepTtftBudgetSlowBurn", "8h", {SOON: "0+94x500", FIRST_TOKENS: "0+100x500"}, NONE),
    Case("StepTtftBudgetSlowBurn", "8h", {SOON: "0+96x500", FIRST_TOKENS: "0+100x500"}),
    Case("StepNoReplicaUp", "5m", {UP % "i1": "2 2 0x10", UP % "i2": "2 2 0x10"}, NONE),
    Case("StepNoReplicaUp", "5m", {UP % "i1": "2 2 0x10", UP % "i2": "2x12"}),
    Case("StepNoIngress", "10m", {UP % "i1": "2 2 stale"}, {"state": "up"}),
    Case("StepNoIngress", "10m", {UP % "i1": "0x20"}),
    Case("StepEngineHung", "4m", {STATE % "hung": "0 0 0 1 stale"}, {"replica": "e1"}),
    Case("StepEngineHung", "4m", {STATE % "stuck": "0 0 0 1 stale"}, {"replica": "e1"}),
    Case("StepEngineHung", "10m", {STATE % "hung": "0 0 0 1 stale"}),
    Case("StepEngineHung", "4m", {STATE % "busy": "1x10", STATE % "hung": "0x10"}),
    Case("StepEngineSilent", "5m", {SILENCE: "0 0 31 91 151 211"}, {"replica": "e1"}),
    Case("StepEngineSilent", "5m", {SILENCE: "0 20 0 25 0 20"}),
    Case("StepEngineDied", "5m", {MIGRATIONS % "died": "0 0 0 1 1 1"}, {"cause": "died"}),
    Case("StepEngineDied", "5m", {MIGRATIONS % "cut": "0+5x5", MIGRATIONS % "moved": "0+5x5"}),
    Case("StepEngineDied", "20m", {MIGRATIONS % "died": "0 0 0 1x30"}),
    Case("StepKvCachePressure", "15m", {KV: "0.97x20"}, {"ReplicaId": "e1"}),
    Case("StepKvCachePressure", "15m", {KV: "0.5x20", PREEMPTIONS: "0+30x20"}, {"ReplicaId": "e1"}),
    Case("StepKvCachePressure", "15m", {KV: "0.9x20", PREEMPTIONS: "0+1x20"}),
    Case(
        "StepMtpAcceptanceDrop",
        "25h",
        {DRAFTED: "0+100x1600", ACCEPTED: "0+80x1440 115240+40x160"},
        {"model_name": "step"},
    ),
    Case("StepMtpAcceptanceDrop", "25h", {DRAFTED: "0+100x1600", ACCEPTED: "0+80x1440 115260+60x160"}),
    Case("StepIngressEventLoopLag", "5m", {LAG: "0.01 0.4x10"}, {"replica": "i1"}),
    Case("StepIngressEventLoopLag", "5m", {LAG: "0.01 0.4 0.2x10"}),
    Case("StepFramesLate", "5m", {LATE: "0 3x10"}, {"replica": "i1"}),
    Case("StepFramesLate", "5m", {LATE: "0 1x10"}),
    Case("StepQueueFull", "15m", {OK: "0+90x20", FULL: "0+10x20"}, NONE, value="10%"),
    Case("StepQueueFull", "15m", {OK: "0+97x20", FULL: "0+3x20"}),
)


def expected(case: Case) -> list[dict[str, Mapping[str, str]]]:
    """What promtool compares: labels, and the annotations with what they quote."""
    if case.labels is None:
        return []
    (rule,) = (rule for rule in ALERTS if rule["alert"] == case.alert)
    labels = {**rule["labels"], **case.labels}
    annotations = {name: _filled(text, labels, case.value) for name, text in rule["annotations"].items()}
    return [{"exp_labels": labels, "exp_annotations": annotations}]


def _filled(text: str, labels: Mapping[str, str], value: str) -> str:
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text)
    return re.sub(r"{{ \$value \| \w+ }}", value, text)


ALERTS = [rule for rule in rules() if "alert" in rule]


def test_the_files_are_valid() -> None:
    for command in (["check", "rules", *map(str, RULES)], ["check", "config", str(MONITORING / "prometheus.yml")]):
        checked = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("alert", [rule["alert"] for rule in ALERTS])
def test_an_alert_fires_where_it_should_and_only_there(alert: str, tmp_path: Path) -> None:
    cases = [case for case in CASES if case.alert == alert]
    assert {case.labels is None for case in cases} == {True, False}, "a case of each"
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected(case)}],
        }
        for case in cases
    ]
    file = tmp_path / "alerts_test.yml"
    file.write_text(yaml.safe_dump({"rule_files": list(map(str, RULES)), "tests": tests}), encoding="utf-8")
    tested = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr
