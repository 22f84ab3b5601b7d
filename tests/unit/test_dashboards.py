"""The shipped dashboards: current, readable by Grafana, and of metrics that exist."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from monitoring import __main__ as command
from monitoring.contents import DASHBOARDS
from monitoring.grafana import WIDTH, Dashboard, to_json
from tests.monitoring.names import known, names_in, rules

UNITS = {"short", "s", "reqps", "percentunit", "bytes", "Bps"}
EACH = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)


def read(dashboard: Dashboard) -> Any:
    return json.loads((command.FOLDER / f"{dashboard.uid}.json").read_text(encoding="utf-8"))


def test_the_files_are_what_their_source_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--check"]) == 0
    assert not capsys.readouterr().out
    assert {file.stem for file in command.FOLDER.glob("*.json")} == {one.uid for one in DASHBOARDS}


def test_a_file_that_is_not_current_is_named_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--check"], tmp_path) == 1
    assert "step-fleet.json is not current" in capsys.readouterr().out
    assert command.main([], tmp_path) == 0
    assert command.main(["--check"], tmp_path) == 0


@EACH
def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: Dashboard) -> None:
    panels = read(dashboard)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


@EACH
def test_every_panel_has_a_unit_and_the_data_source_that_was_chosen(dashboard: Dashboard) -> None:
    file = read(dashboard)
    assert file["templating"]["list"][0] == {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "label": "Data source",
    }
    for panel in file["panels"]:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["targets"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@EACH
def test_queries_use_the_variables_of_their_dashboard_only(dashboard: Dashboard) -> None:
    text = json.dumps(to_json(dashboard)["panels"]).replace("$__rate_interval", "").replace("${datasource}", "")
    for variable in dashboard.variables:
        text = text.replace(f"${variable.name}", "")
    assert "$" not in text


def test_titles_and_uids_are_unique() -> None:
    for names in ([one.uid for one in DASHBOARDS], [one.title for one in DASHBOARDS]):
        assert len(set(names)) == len(names)


def test_every_query_reads_metrics_that_exist() -> None:
    panels = [query.expr for one in DASHBOARDS for panel in one.panels() for query in panel.queries]
    variables = [variable.query for one in DASHBOARDS for variable in one.variables]
    for expr in [*panels, *variables, *(rule["expr"] for rule in rules())]:
        assert names_in(expr) or "vector(" in expr, expr
        assert not names_in(expr) - known(), expr


def test_every_alert_says_what_to_do_and_how_urgent_it_is() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert set(rule["annotations"]) == {"summary", "description"}
