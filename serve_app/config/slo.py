"""The objective that the number of engines follows."""

from __future__ import annotations

from pydantic import PositiveFloat, field_validator

from serve_app.config.section import Section

NO_TPOT_S = 5.0
"""No time per output token is that long in a service that somebody uses, and none is that short in milliseconds."""


class SloConfig(Section):
    """What users are to feel (docs/autoscaling.md). With one of these, the number of engines between `replicas.min` and
    `replicas.max` is the lowest that keeps them; without, it follows `replicas.target_load`."""

    ttft_p95_s: PositiveFloat | None = None
    """Time to the first token that at most one request in 20 exceeds."""
    tpot_p95_s: PositiveFloat | None = None
    """Time per output token after the first that at most one request in 20 exceeds."""

    @field_validator("tpot_p95_s")
    @classmethod
    def _tpot_is_in_seconds(cls, tpot_s: float | None) -> float | None:
        if tpot_s is not None and tpot_s >= NO_TPOT_S:
            raise ValueError(f"{tpot_s:g} seconds for each token is no objective; is it in milliseconds?")
        return tpot_s

    @property
    def is_set(self) -> bool:
        """Whether there is an objective."""
        return self.ttft_p95_s is not None or self.tpot_p95_s is not None
