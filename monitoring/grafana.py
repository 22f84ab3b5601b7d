"""A dashboard as Grafana reads it: rows of panels become JSON with ids, places and a data source that can be chosen.

Only what our panels need. The data source is a variable, as in Ray's own dashboards: a file works with whichever
Prometheus the Grafana has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 24
"""Of Grafana's grid."""
HEIGHT: Final = 8
"""Of a panel."""

DATA_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, object]


@dataclass(frozen=True)
class Query:
    """A query, and what its lines are called (`{{label}}` is a label's value)."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel of lines. `unit` is Grafana's (`s`, `reqps`, `percentunit`, `short`, `bytes`, `Bps`)."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels side by side, of the same width."""

    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label, `All` unless one is chosen."""

    name: str
    query: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard. Its file is `<uid>.json`, and its address in Grafana `/d/<uid>`."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()

    def panels(self) -> list[Panel]:
        """All panels, in order."""
        return [panel for row in self.rows for panel in row.panels]


def to_json(dashboard: Dashboard) -> Json:
    """What Grafana reads."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["step-serve"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_data_source(), *map(_variable, dashboard.variables)]},
        "links": [
            {"type": "dashboards", "title": "Step", "tags": ["step-serve"], "asDropdown": True, "keepTime": True}
        ],
        "panels": list(_placed(dashboard.rows)),
    }


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    number = 0
    for line, row in enumerate(rows):
        width = WIDTH // len(row.panels)
        for column, panel in enumerate(row.panels):
            number += 1
            place = {"x": column * width, "y": line * HEIGHT, "w": width, "h": HEIGHT}
            yield _panel(panel, number, place)


def _panel(panel: Panel, number: int, place: dict[str, int]) -> Json:
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    custom = {"lineWidth": 1, "fillOpacity": 25 if panel.stacked else 5, "stacking": stacking, "showPoints": "never"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": DATA_SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + place_in_panel),
                "datasource": DATA_SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "range": True,
            }
            for place_in_panel, query in enumerate(panel.queries)
        ],
    }


def _data_source() -> Json:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 0, "label": "Data source"}


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.name,
        "type": "query",
        "datasource": DATA_SOURCE,
        "definition": variable.query,
        "query": {"query": variable.query, "refId": "variable"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
