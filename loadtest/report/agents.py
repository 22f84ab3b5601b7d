"""The tables and the JSON of sessions of coding agents (`metrics/agent_metrics.py` has the definitions)."""

from __future__ import annotations

from dataclasses import asdict

from loadtest.metrics.agent_metrics import PERCENTILES, AgentMetrics, Balance, Turn, TurnFigures, Window
from loadtest.report.table import Table, number

FIGURES_HEAD = ("requests", "failed", *(f"TTFT P{percent:g}" for percent in PERCENTILES), "prompt tokens", "hit ratio",
                "possible", "hit / possible")  # fmt: skip
BALANCE_HEAD = ("replicas", "requests", "running time", "computed tokens")
NO_REPLICA = (
    "no response named its replica (x-replica-id), and no line of an --access-log: Ray's logs/worker-*.err have those "
    "of this project's ingress"
)


def agent_tables(metrics: AgentMetrics | None) -> list[Table]:
    """All tables of a run of agents' sessions."""
    if metrics is None:
        return []
    rows = [(kind.value, *_cells(figures)) for kind, figures in metrics.by_kind.items()]
    rows.append(("all", *_cells(metrics.figures)))
    notes = [
        "TTFT in ms. Possible: one unlimited cache for the whole service. Of failed requests, nothing counts as hit"
    ]
    turns = Table("Sessions of coding agents", ("", *FIGURES_HEAD), tuple(rows), tuple(notes))
    return [turns, *_balance_tables(metrics), _windows_table(metrics)]


def _cells(figures: TurnFigures) -> tuple[str, ...]:
    share = figures.share_of_possible
    return (
        f"{figures.requests:,}",
        f"{figures.failed:,}",
        *(number(figures.ttft_ms[percent]) if figures.ttft_ms else "-" for percent in PERCENTILES),
        number(figures.prompt_tokens_mean, 0),
        f"{figures.hit_ratio:.1%}",
        f"{figures.possible_hit_ratio:.1%}",
        "-" if share is None else f"{share:.1%}",
    )


def _balance_tables(metrics: AgentMetrics) -> list[Table]:
    balance = metrics.balance
    if balance is None:
        return [
            Table("Load by replica", ("", ""), (("requests without a replica", f"{metrics.unnamed:,}"),), (NO_REPLICA,))
        ]
    rows: list[tuple[str, ...]] = [
        (name, f"{load.requests:,}", f"{number(load.running_s)} s", f"{load.computed_tokens:,}")
        for name, load in balance.replicas.items()
    ]
    rows.append(("max / mean", *_balance_cells(balance)[1:]))
    notes = (f"{metrics.unnamed:,} requests have no replica, and are left out",) if metrics.unnamed else ()
    return [Table("Load by replica", ("", *BALANCE_HEAD[1:]), tuple(rows), notes)]


def _balance_cells(balance: Balance | None) -> tuple[str, ...]:
    if balance is None:
        return ("-",) * len(BALANCE_HEAD)
    values = (balance.requests, balance.running_s, balance.computed_tokens)
    return (f"{len(balance.replicas)}", *(f"{value:.2f}" for value in values))


def _windows_table(metrics: AgentMetrics) -> Table:
    head = ("", *FIGURES_HEAD, BALANCE_HEAD[0], *(f"{name}, max / mean" for name in BALANCE_HEAD[1:]))
    rows = [
        (f"{number(window.begin_s, 0)} to {number(window.end_s, 0)} s", *_cells(window.figures),
         *_balance_cells(window.balance))
        for window in metrics.windows
    ]  # fmt: skip
    return Table(
        "Sessions over time", head, tuple(rows), ("by the start of requests; replicas without any are not seen",)
    )


def agents_result(metrics: AgentMetrics | None) -> dict[str, object] | None:
    """The figures for the result file, with one list per column of the turns, in the order of their start."""
    if metrics is None:
        return None
    columns = ("session", "parent", "turn", "ok", "start_s", "end_s", "ttft_ms", "prompt_tokens", "cached_tokens",
               "possible_tokens", "output_tokens", "replica")  # fmt: skip
    return {
        **_figures(metrics.figures),
        "by_kind": {kind.name.lower(): _figures(figures) for kind, figures in metrics.by_kind.items()},
        "balance": _balance(metrics.balance),
        "windows": [_window(window) for window in metrics.windows],
        "unnamed": metrics.unnamed,
        "turns": {name: [_column(turn, name) for turn in metrics.turns] for name in columns},
    }


def _column(turn: Turn, name: str) -> object:
    value = getattr(turn, name)
    return round(value, 4) if isinstance(value, float) else value


def _figures(figures: TurnFigures) -> dict[str, object]:
    return {**asdict(figures), "share_of_possible": figures.share_of_possible}


def _balance(balance: Balance | None) -> dict[str, object] | None:
    if balance is None:
        return None
    return {
        "replicas": {name: asdict(load) for name, load in balance.replicas.items()},
        "max_by_mean": {
            "requests": balance.requests,
            "running_s": balance.running_s,
            "computed_tokens": balance.computed_tokens,
        },
    }


def _window(window: Window) -> dict[str, object]:
    return {
        "begin_s": window.begin_s,
        "end_s": window.end_s,
        **_figures(window.figures),
        "balance": _balance(window.balance),
    }
