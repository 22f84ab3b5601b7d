"""What the reports show for given records: terminal, Markdown, CSV, JSON and the page."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.text import Text

from loadtest.api.record import Record
from loadtest.api.requests import Api
from loadtest.errors import RequestOutcome
from loadtest.fleet.view import FleetView, SpecDecode, TimelineEvent, TtftBreakdown
from loadtest.load.runner import RunResult
from loadtest.load.self_check import SelfCheck
from loadtest.metrics.reference_results import BenchmarkSettings
from loadtest.metrics.summary import Summary, SummarySpec, summarize
from loadtest.metrics.vllm_metrics import RunInfo
from loadtest.report.charts import swim_lanes, time_charts
from loadtest.report.files import as_csv, full_result, plain
from loadtest.report.html import as_html
from loadtest.report.table import Table, markdown_table, number, text_table
from loadtest.report.text import as_markdown, as_text, warnings
from tests.loadtest.records import MS, record, run_of

HEALTHY = SelfCheck(cpu_s=1.0, wall_s=10.0, loop_lag_p50_ms=0.1, loop_lag_p99_ms=1.0, loop_lag_max_ms=2.0)
BUSY = replace(HEALTHY, cpu_s=9.5)
INFO = RunInfo(Api.CHAT, "http://server:8000", "step3p7", "step3p7", None, 12, 4, float("inf"), 1.0, label="night")
FLEET = FleetView(
    at_s=[0.0, 1.0],
    replicas={"engine RUNNING": [2, 1], "engine STARTING": [0, 1]},
    target_replicas=[2, 2],
    queued=[0, 3],
    kv_usage=[0.5, 0.25],
    acceptance=[None, 2.5],
    events=(TimelineEvent(1.0, "engine: replica a was lost", "death"), TimelineEvent(0.5, "kill -9 7", "event")),
    ttft_breakdown=TtftBreakdown(100.0, 60.0, in_fleet=90.0),
    recoveries=((0.5, 0.0), (1.0, 2.5), (2.0, None)),
    spec_decode=SpecDecode(100, 300, 150),
    prefix_hit_ratio=0.25,
    problem="one node did not answer",
)


def failed(index: int) -> Record:
    one = record(index * 100, 50, 10, 5, index=index, ok=False)
    one.outcome, one.status, one.error, one.retry_after_s = RequestOutcome.FULL, 429, "HTTP 429", 7.0
    one.body = '{"error": "queue | full\x1b[31m"}'
    return one


def summary_of(records: list[Record], info: RunInfo = INFO, check: SelfCheck = HEALTHY, **changes: Any) -> Summary:
    spec = SummarySpec(slo=changes.pop("slo", None), goodput_ms=changes.pop("goodput_ms", {}))
    benchmark = changes.pop("benchmark", None)
    made = summarize(info, RunResult(run_of(records), (check,)), spec, benchmark=benchmark)
    return replace(made, **changes)


def good_run() -> list[Record]:
    return [record(index * 100, 50, 10, 101, index=index, per_chunk=2) for index in range(12)]


def cells(text: str, row: str) -> list[str]:
    """The cells of the first such row of the terminal's report."""
    line = next(line for line in text.splitlines() if line.startswith(f"  {row}  "))
    return [cell.strip() for cell in line.strip().split("  ") if cell.strip()][1:]


def test_the_terminal_shows_vllms_figures_and_those_they_hide() -> None:
    text = as_text(summary_of(good_run(), goodput_ms={"ttft": 60.0}))
    assert text.splitlines()[0] == "night: step3p7 at http://server:8000, 12 requests, 4 at a time"
    assert cells(text, "TTFT, time to first token")[:2] == ["50.0", "50.0"]
    assert cells(text, "TPOT, time per output token after it")[0] == "5.0", "1000 ms over 201 further tokens"
    assert cells(text, "ITL, gap between chunks")[0] == "10.0"
    assert cells(text, "gap per token")[0] == "5.0"
    assert cells(text, "requests that succeeded / failed") == ["12 / 0"]
    assert cells(text, "goodput") == cells(text, "requests"), "every request is within 60 ms"
    assert "2.00 tokens per chunk" in text
    assert "Failures" not in text


def test_objectives_and_failures_are_tables_with_a_hint() -> None:
    text = as_text(summary_of([*good_run(), failed(12)], slo="ttft_p50<60ms,ttft_p99<60ms,failed<1%"))
    assert cells(text, "ttft_p50<60ms") == ["50.0 ms", "yes", "92.3%"]
    assert cells(text, "ttft_p99<60ms") == ["never", "NO", "92.3%"]
    assert cells(text, "failed<1%") == ["7.69%", "NO"]
    assert "92.3% of the requests meet all time limits at once" in text
    assert cells(text, "full_429")[:2] == ["1", "HTTP 429"]
    assert "full_429: the server is full: lower --max-concurrency or --request-rate, or add replicas (it asks" in text
    assert "\x1b" not in text, "a body cannot colour the terminal"


@pytest.mark.parametrize("columns", ["20", "80"])
def test_tables_keep_their_width_and_have_no_colours(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    long = "a name that is longer than any terminal " * 4
    text = text_table(
        Table("Title", ("", "mean", "P99"), ((long, "1.0", "[bold]2[/bold]"), ("b", "10.0", "3")), ("n",))
    )
    lines = text.splitlines()
    assert lines[0] == "Title"
    assert lines[1].split() == ["mean", "P99"]
    assert lines[2] == f"  {long}   1.0  [bold]2[/bold]"
    assert lines[3].endswith("  10.0               3")
    assert lines[4:] == ["  n"]
    assert Text(text).plain == text


def test_a_table_without_a_head_or_of_words_is_left_aligned() -> None:
    assert text_table(Table("T", ("", ""), (("a", "1"), ("bb", "22")))) == "T\n  a    1\n  bb  22\n"
    assert text_table(Table("T", ("x", "y"), (("a", "1"), ("b", "22")), words=True)) == "T\n  x  y\n  a  1\n  b  22\n"
    assert markdown_table(Table("T", ("x", "y"), (("a|b", "1\n2"),), ("n",))) == (
        "## T\n\n| x | y |\n| --- | ---: |\n| a\\|b | 1 2 |\n\n- n\n"
    )


def test_numbers_are_for_people() -> None:
    assert [number(v) for v in (1234.56, 0.0, 0.04, float("inf"))] == ["1,234.6", "0.0", "0.04", "never"]


def test_warnings_come_in_the_order_of_their_weight() -> None:
    records = [*good_run(), failed(12)]
    records[0].chunk_ns = records[0].chunk_ns[[0] * 101]
    records[1].cached_tokens = 1200
    records[2].tokens_from = "chunks"
    records[12].vllm_success = True
    records.append(replace(record(0, 50, 10, 5, index=13), outcome=RequestOutcome.INTERRUPTED, vllm_success=False))
    made = summary_of(records, check=BUSY)
    texts = warnings(replace(made, result=replace(made.result, run=replace(made.result.run, interrupted=True))))
    starts = [
        "interrupted: 1 request in flight dropped", "1 of 13 requests failed", "the server rejected 1 request as full",
        "vLLM's client would have counted 1 of the failures", "100% of the prompt tokens", "the server sent no usage",
        "this client or its machine was busy",
    ]  # fmt: skip
    assert [next((t for t in texts if t.startswith(start)), None) for start in starts] == texts
    assert warnings(summary_of([failed(0)]))[0] == "no request succeeded: there are no latency figures"


def test_bursts_and_other_lengths_are_warned_of() -> None:
    records = good_run()
    for one in records:
        one.chunk_ns = one.chunk_ns[[0] * 60 + list(range(41))]
        one.planned_output_tokens = 300
    texts = warnings(summary_of(records))
    assert texts[0].startswith("59% of the tokens arrived in bursts (several events per read): something batches")
    assert texts[1] == "100% of the answers have another length than requested"


def test_the_fleet_table_has_the_breakdown_states_and_recoveries() -> None:
    text = as_text(summary_of(good_run(), fleet=FLEET))
    assert cells(text, "TTFT: everything else") == ["40.0 ms"]
    assert cells(text, "  of that, between ingress and engine") == ["30.0 ms"]
    assert cells(text, "MTP: tokens per engine step") == ["2.50"]
    assert cells(text, "replicas engine RUNNING") == ["1 to 2"]
    assert cells(text, "objectives after 0 s") == ["never missed"]
    assert cells(text, "objectives after 1 s") == ["met again after 2.5 s"]
    assert cells(text, "objectives after 2 s") == ["not met again"]
    assert "  one node did not answer\n  1.0 s: engine: replica a was lost" in text
    assert "25% of the prompt tokens came from the server's cache" in text


def test_a_run_of_the_benchmark_is_compared_and_estimated() -> None:
    records = [
        record(slot * 5 + wave * 1100, 100, 9, 101, index=wave * 4 + slot) for wave in range(6) for slot in range(4)
    ]
    settings = BenchmarkSettings("random", "chat", 8192, 2048, 24, 4, 0, forced_length=True, interrupted=False)
    text = as_text(summary_of(records, benchmark=settings))
    assert cells(text, "TTFT mean") == "100.0 ms|2,183.0|0.05|2,995.0|0.03|13,646.0|0.01".split("|")
    assert "not comparable: num prompts is 24, published 512" in text
    assert "Estimate for the full run of 512 prompts" in text
    assert cells(text, "window")[0].endswith(" s")


def test_classes_of_a_mix_have_rows_of_their_own() -> None:
    records = good_run()
    for one in records[:4]:
        one.kind = "short"
    text = as_text(summary_of(records))
    assert cells(text, "short")[0] == "4 / 0"
    assert cells(text, "all")[0] == "8 / 0"


def test_an_open_loop_shows_latency_from_the_schedule() -> None:
    records = good_run()
    for one in records:
        one.intended_ns -= 500 * MS
    info = replace(INFO, max_concurrency=None, request_rate=10.0)
    made = summary_of(records, info)
    assert cells(as_text(made), "first token, from the scheduled send time")[0] == "550.0"
    assert ["offered", "succeeded", "failed"] in [[line.name for line in chart.lines] for chart in time_charts(made)]


def test_markdown_has_every_table_of_the_terminal() -> None:
    made = summary_of([*good_run(), failed(12)], slo="ttft_p99<60ms", fleet=FLEET)
    text = as_markdown(made)
    assert text.startswith("# Load test: night: step3p7 at http://server:8000, 13 requests, 4 at a time\n")
    titles = [line for line in as_text(made).splitlines() if f"## {line}" in text.splitlines()]
    assert len(titles) == text.count("\n## ") >= 7
    assert "| ttft_p99<60ms | never | NO | 92.3% |" in text
    assert "queue \\| full" in text


def test_csv_has_a_line_per_request_with_units_in_its_columns() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(run_of([*good_run(), failed(12)])))))
    assert len(rows) == 13
    first, last = rows[0], rows[12]
    assert (first["ttft_ms"], first["tpot_ms"], first["itl_mean_ms"], first["e2el_ms"]) == (
        "50.000", "4.975", "10.000", "1050.000",
    )  # fmt: skip
    assert (first["outcome"], first["chunks"], first["output_tokens"], first["longest_token_gap_ms"]) == (
        "ok", "101", "202", "5.000",
    )  # fmt: skip
    assert (last["outcome"], last["status"], last["tpot_ms"], last["error"]) == ("full_429", "429", "", "HTTP 429")
    assert float(last["start_s"]) == pytest.approx(1.2)


def test_the_json_file_has_vllms_keys_and_ours() -> None:
    made = summary_of([*good_run(), failed(12)], slo="ttft_p99<60ms", fleet=FLEET)
    found: dict[str, Any] = json.loads(json.dumps(full_result(made, detailed=True)))
    assert (found["completed"], found["failed"], found["request_rate"]) == (12, 1, "inf")
    assert found["mean_ttft_ms"] == pytest.approx(50)
    assert len(found["ttfts"]) == len(found["itls"]) == 13
    assert found["spec_decode_acceptance_rate"] == 50
    assert found["spec_decode_acceptance_length"] == 2.5
    ours = found["loadtest"]
    assert ours["objectives"] == [{"bound": "ttft_p99<60ms", "value": None, "met": False, "attainment": 12 / 13}]
    assert [mark["kind"] for mark in ours["fleet"]["marks"]] == ["death", "event"]
    assert ours["fleet"]["split"] == {"seen_by_client": 100.0, "in_engine": 60.0, "in_fleet": 90.0}
    assert "events" not in ours["fleet"]
    assert ours["failures"][0]["examples"][0]["retry_after_s"] == 7.0
    assert ours["requests"]["ttft_ms"][12] is None
    assert set(ours) >= {"strict", "steady", "series", "classes", "published", "projection", "client", "warnings"}


def test_a_value_without_a_json_form_is_an_error() -> None:
    with pytest.raises(TypeError, match="set has no JSON form"):
        plain({1, 2})


def test_the_page_has_the_tables_the_plots_and_the_bodies() -> None:
    page = as_html(summary_of([*good_run(), failed(12)], slo="ttft_p99<60ms", fleet=FLEET))
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [chart["title"] for chart in data["time"]] == [
        "Output", "In flight", "Time to first token", "Time per output token", "Rate", "Replicas", "Queue", "KV cache",
        "MTP acceptance",
    ]  # fmt: skip
    assert data["time"][0]["marks"][0] == {"at": 1.0, "what": "engine: replica a was lost", "kind": "death"}
    assert [chart["title"] for chart in data["spread"]][2:] == ["Gaps", "Whole answer"]
    assert len(data["lanes"]["rows"]) == 13
    assert "<td class='no' data-head='met'>NO</td>" in page
    assert "queue | full" in page, "the body of a failed response"
    assert page.index("Read this first") < page.index("<h3>TTFT</h3>") < page.index("Objectives")


def test_requests_are_stacked_into_the_lowest_free_lane() -> None:
    records = [record(0, 10, 10, 11), record(50, 10, 10, 11), record(200, 10, 10, 11)]
    rows: Any = swim_lanes(summary_of(records))["rows"]
    assert [row[-1] for row in rows] == [0, 1, 0]
    assert rows[2][:3] == [0.2, 0.21, 0.31]
