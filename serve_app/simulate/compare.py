"""How near the model is to a run: the same requests, by the access log of the run and in the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from serve_app.simulate.fleet_model import SimulationResult
from serve_app.simulate.results import quantile
from serve_app.simulate.trace import Served

NEAR = 0.2
"""The model may differ by so much of the real figure."""


@dataclass(frozen=True)
class Comparison:
    """One figure of the run and of the model."""

    name: str
    real: float
    modelled: float
    unit: str = "s"

    @property
    def error(self) -> float:
        """The difference over the real figure."""
        return (self.modelled - self.real) / self.real if self.real else 0.0

    @property
    def is_near(self) -> bool:
        """Whether the model is as near as it must be."""
        return abs(self.error) <= NEAR


def comparisons(real: Sequence[Served], model: SimulationResult, replica_s: float | None) -> list[Comparison]:
    """The figures of both. `replica_s` are the replica-seconds of the run, if they are known."""
    ttft_s = [one.ttft_s for one in real if one.ttft_s is not None]
    model_ttft_s = [one.ttft_s for one in model.requests if one.ttft_s is not None]
    total_s = [one.total_s for one in real if one.ttft_s is not None]
    model_total_s = [
        one.ttft_s + one.tpot_s * (one.request.output_tokens - 1) for one in model.requests if one.ttft_s is not None
    ]
    found = [
        Comparison("TTFT p50", quantile(ttft_s, 0.5), quantile(model_ttft_s, 0.5)),
        Comparison("TTFT p95", quantile(ttft_s, 0.95), quantile(model_ttft_s, 0.95)),
        Comparison("duration p50", quantile(total_s, 0.5), quantile(model_total_s, 0.5)),
        Comparison("duration p95", quantile(total_s, 0.95), quantile(model_total_s, 0.95)),
    ]
    if replica_s is not None:
        found.append(Comparison("replica-seconds", replica_s, model.replica_s))
    refused = len(real) - len(ttft_s)
    if refused or len(model_ttft_s) < len(model.requests):
        found.append(Comparison("refused", refused, len(model.requests) - len(model_ttft_s), ""))
    return found


def as_table(title: str, found: Sequence[Comparison]) -> Table:
    """One line for each figure."""
    table = Table("figure", title=title, title_justify="left")
    for heading in ("real", "model", "error", f"within {NEAR:.0%}"):
        table.add_column(heading, justify="right")
    for one in found:
        near = "yes" if one.is_near else "no"
        table.add_row(
            one.name, f"{one.real:.2f} {one.unit}", f"{one.modelled:.2f} {one.unit}", f"{one.error:+.1%}", near
        )
    return table
