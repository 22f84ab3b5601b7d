"""One line per request, for spreadsheets."""

from __future__ import annotations

import csv
import io

from loadtest.api.record import RunRecords, itl_s, latency_s, tpot_s, ttft_s
from loadtest.metrics.extended_metrics import token_gaps_s

HEAD = (  # one word a column
    "index class session turn outcome status intended_s start_s ttft_ms first_visible_ms tpot_ms itl_mean_ms "
    "longest_token_gap_ms e2el_ms connect_ms prompt_tokens cached_tokens output_tokens chunks finish_reason replica "
    "error"
).split()


def as_csv(run: RunRecords) -> str:
    """Times in the columns' units, relative to the run's start where they are moments."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(HEAD)
    for record in run.records:
        gaps, tokens = itl_s(record), token_gaps_s(record)
        visible = (record.first_visible_ns - record.start_ns) / 1e6 if record.first_visible_ns else ""
        writer.writerow(
            [
                record.index, record.kind, record.session if record.session >= 0 else "", record.turn,
                record.outcome.value, record.status or "",
                f"{(record.intended_ns - run.begin_ns) / 1e9:.6f}", f"{(record.start_ns - run.begin_ns) / 1e9:.6f}",
                _ms(ttft_s(record)) if len(record.chunk_ns) else "", visible if visible == "" else f"{visible:.3f}",
                _ms(tpot_s(record)) if record.ok else "", _ms(float(gaps.mean())) if len(gaps) else "",
                _ms(float(tokens.max())) if len(tokens) else "", _ms(latency_s(record)) if record.ok else "",
                f"{record.connect_ns / 1e6:.3f}", record.prompt_tokens, record.cached_tokens, record.output_tokens,
                len(record.chunk_ns), record.finish_reason, record.replica, record.error,
            ]
        )  # fmt: skip
    return out.getvalue()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
