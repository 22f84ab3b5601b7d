"""The names of metrics in a query, and which of them exist."""

from __future__ import annotations

import re
from typing import Any

import yaml

from serve_app.cli import docs_metrics
from tests.monitoring.prometheus import RULES


def names_in(expr: str) -> set[str]:
    """The metrics that a query reads, recorded ones included."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    return set(re.findall(r"\b(?:ray_\w+|step:[\w:]+|ALERTS)\b", bare))


def known() -> set[str]:
    """Every name that a query may read: ours, vLLM's that docs/metrics.md lists, and recorded ones."""
    names = {"ALERTS"} | {f"ray_vllm_{name}" for name in docs_metrics.VLLM_METRICS}
    for metric in (*docs_metrics.ingress_metrics(), *docs_metrics.replica_metrics()):
        name = f"ray_{metric.info['name']}"
        if "boundaries" in metric.info:
            names |= {f"{name}{part}" for part in ("_bucket", "_sum", "_count")}
        else:
            names.add(f"{name}_total" if "counter" in type(metric).__name__.lower() else name)
    return names | {rule["record"] for rule in rules() if "record" in rule}


def rules() -> list[dict[str, Any]]:
    """The shipped rules."""
    files = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]
