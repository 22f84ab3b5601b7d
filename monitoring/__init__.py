"""Dashboards for Grafana, and recording and alert rules for Prometheus (`docs/observability.md`)."""
