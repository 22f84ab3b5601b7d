"""One HTML page that works offline: no network, no fonts, no library.

Tables are plain HTML. `page.js` draws the plots at the width of the window, so that labels stay legible on a phone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files

import msgspec

from loadtest import __version__
from loadtest.metrics.summary import FailureGroup, Summary
from loadtest.report.charts import distribution_charts, swim_lanes, time_charts
from loadtest.report.table import Table, counted, number
from loadtest.report.tables import tables
from loadtest.report.text import title, warnings

DEFINITIONS = (
    (
        "TTFT",
        "Time to first token: from when the client starts a request to the first event with a choice.",
    ),
    (
        "TPOT",
        "Time per output token: the time from the first to the last event, divided by the number of tokens minus one.",
    ),
    (
        "ITL",
        "Inter-token latency as vLLM defines it: the gap between two events. An event may carry several tokens.",
    ),
    ("Gap per token", "The same gaps divided by the number of tokens per event."),
    ("E2EL", "End-to-end latency: to the last token."),
    ("Goodput and attainment", "Rate or share of requests within their limits. A failed request is a miss."),
    ("Steady state", "The shaded part of the plots, without ramp and tail."),
)


def as_html(summary: Summary) -> str:
    """The page of a run."""
    data = msgspec.json.encode(
        {"time": time_charts(summary), "spread": distribution_charts(summary), "lanes": swim_lanes(summary)}
    ).decode()
    all_tables = tables(summary)
    objectives = [table for table in all_tables if table.title.startswith("Objectives")]
    shade = '<p class="hint">Shaded: the steady state, without ramp and tail.</p>' if summary.steady_state else ""
    body = [
        _page_header(summary),
        warnings_section(warnings(summary)),
        _tiles(summary),
        *(table_section(table) for table in objectives),
        f'<section><h2>Over time</h2>{shade}<div id="time" class="charts"></div></section>',
        (
            "<section><h2>Requests</h2>"
            '<p class="hint">One bar per request, in the lowest free row: light until its first token, '
            'solid until its last, red if it failed.</p><div id="lanes"></div></section>'
        ),
        (
            '<section><h2>Distributions</h2><p class="hint">Cumulative: the vertical axis is the percentile.</p>'
            '<div id="spread" class="charts"></div></section>'
            if summary.vllm_metrics.completed > 1
            else ""
        ),
        *(table_section(table) for table in all_tables if table not in objectives),
        _failed_bodies(summary.failures),
        _definitions(),
    ]
    return document(f"Load test: {title(summary)}", body, data)


def document(name: str, body: Sequence[str], data: str = "") -> str:
    """A page from its sections, without empty ones, and the data of its plots as JSON."""
    assets = files("loadtest.report")
    style = assets.joinpath("page.css").read_text(encoding="utf-8")
    script = assets.joinpath("page.js").read_text(encoding="utf-8")
    plots = f'<script type="application/json" id="data">{_inside_script(data)}</script>\n<script>{script}</script>\n'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title>\n<style>{style}</style></head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<footer>loadtest {__version__}</footer>\n{plots if data else ''}</body></html>\n"
    )


def _inside_script(data: str) -> str:
    """JSON that cannot end the script element around it."""
    return data.replace("</", "<\\/").replace("<!--", "<\\!--")


def _page_header(summary: Summary) -> str:
    info, run = summary.run_info, summary.result.run
    when = datetime.fromtimestamp(run.wall_start_s).astimezone().strftime("%d %B %Y, %H:%M %Z")
    facts = [
        info.url, f"{info.api.value} API", counted(len(run.records), "request"),
        f"{info.max_concurrency} at a time" if info.max_concurrency else "no cap on requests in flight",
    ]  # fmt: skip
    if info.request_rate != float("inf"):
        facts.append(f"{info.request_rate:g} requests/s")
    facts += [f"{number(run.duration_s)} s", when]
    return page_header("Load test", info.label or info.model, facts, under=info.model if info.label else "")


def page_header(kicker: str, name: str, facts: Sequence[str], under: str = "") -> str:
    """The title of a page and the facts under it."""
    model = f"<p class='model'>{escape(under)}</p>" if under else ""
    return (
        f"<header><p class='kicker'>{escape(kicker)}</p><h1>{escape(name)}</h1>{model}<ul class='facts'>"
        + "".join(f"<li>{escape(fact)}</li>" for fact in facts)
        + "</ul></header>"
    )


def warnings_section(texts: Sequence[str]) -> str:
    """Warnings above everything else."""
    if not texts:
        return ""
    return (
        "<section class='warn' role='note'><h2>Read this first</h2><ul>"
        + "".join(f"<li>{escape(warning)}</li>" for warning in texts)
        + "</ul></section>"
    )


def _tiles(summary: Summary) -> str:
    metrics = summary.vllm_metrics
    total = metrics.completed + metrics.failed
    tiles = [("Output", number(metrics.output_throughput, 0), "tok/s", "whole run")]
    if summary.steady_state is not None:
        rate = summary.steady_state.output_rate
        half = f"± {number(rate.half_width, 0)}" if rate.half_width != float("inf") else ""
        tiles.append(("Steady state", number(rate.mean, 0), "tok/s", half))
    if metrics.completed:
        tiles += [
            ("TTFT", number(metrics.ttft.mean), "ms", f"P99 {number(metrics.ttft.percentiles[99.0])} ms"),
            ("TPOT", number(metrics.tpot.mean), "ms", f"P99 {number(metrics.tpot.percentiles[99.0])} ms"),
            (
                "ITL per chunk",
                number(metrics.itl.mean),
                "ms",
                f"{summary.extended_metrics.tokens_per_chunk:.2f} tokens per chunk",
            ),
        ]
    failed = f"{metrics.failed / total:.1%} failed" if total else ""
    tiles.append(("Requests", f"{metrics.completed:,}", f"of {total:,}", failed if metrics.failed else "all succeeded"))
    return tiles_section([(*tile, tile[0] == "Requests" and metrics.failed > 0) for tile in tiles])


def tiles_section(tiles: Sequence[tuple[str, str, str, str, bool]]) -> str:
    """The main figures: name, value, unit, the line under it, and whether it is bad."""
    cells = [
        f"<div class='tile{' bad' if bad else ''}'><h3>{escape(name)}</h3>"
        f"<p class='value'>{escape(value)} <span>{escape(unit)}</span></p>"
        f"<p class='under'>{escape(under)}</p></div>"
        for name, value, unit, under, bad in tiles
    ]
    return "<section class='tiles'>" + "".join(cells) + "</section>"


def table_section(table: Table) -> str:
    """A table with its title and notes."""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in table.head) if any(table.head) else ""
    rows = "".join(
        "<tr>"
        f"<th scope='row'>{escape(row[0])}</th>"
        + "".join(
            f"<td{_cell_class(cell)} data-head='{escape(name)}'>{escape(cell)}</td>"
            for name, cell in zip(table.head[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<section><h2>{escape(table.title)}</h2><div class='scroll'><table{' class=words' if table.words else ''}>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        + (f"<ul class='notes'>{notes}</ul>" if notes else "")
        + "</section>"
    )


def _cell_class(cell: str) -> str:
    return {"NO": " class='no'", "MISS": " class='no'", "yes": " class='yes'", "ok": " class='yes'"}.get(cell, "")


def _failed_bodies(groups: tuple[FailureGroup, ...]) -> str:
    parts = [
        f"<details><summary>Request {record.index}: {escape(group.outcome.value)}, {escape(record.error[:160])}"
        f"</summary><pre>{escape(_pretty(record.body))}</pre></details>"
        for group in groups
        for record in group.examples
        if record.body
    ]
    return f"<section><h2>Bodies of failed responses</h2>{''.join(parts)}</section>" if parts else ""


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body


def _definitions() -> str:
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in DEFINITIONS)
    return f"<section><details><summary>What the figures mean</summary><dl>{items}</dl></details></section>"
