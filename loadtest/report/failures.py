"""Failed requests: a table of them, and a hint for each kind on what to do about it."""

from __future__ import annotations

from loadtest.api.record import Record
from loadtest.errors import RequestOutcome
from loadtest.metrics.summary import Summary
from loadtest.report.table import Table

ERROR_SHOWN, BODY_SHOWN = 120, 200
"""Characters."""
HINT_BY_STATUS = {
    400: "the server rejects the request: its message names the reason, most often a length or a field of --extra-body",
    401: "give the key with --api-key or in OPENAI_API_KEY",
    403: "this key is not allowed to do that: give another with --api-key",
    404: "the server has no such model or path: check --model, --url and --api",
    413: "the prompts are larger than the server or a proxy in front of it allows: lower --input-len",
    422: "the server does not know a field of the request: check --api and --extra-body",
    429: "the server is full: lower --max-concurrency or --request-rate, or add replicas",
    502: "a proxy found no server to forward to: check the fleet",
    503: "no replica could serve: wait until the fleet is ready, or lower the load below its queue limit",
    529: "no replica could serve (Anthropic's status code for it): wait until the fleet is ready",
    504: "a proxy timed out: raise its time limit, or lower the load",
}
HINT_BY_OUTCOME = {
    RequestOutcome.NOT_CONNECTED: "no connection: check that the server is running and accepts this many connections",
    RequestOutcome.SERVER_ERROR: "the server failed: see its log",
    RequestOutcome.ERROR_EVENT: "the server failed during the answer: see its log",
    RequestOutcome.CUT: "connections broke: a server or proxy ended, or closes connections after a time limit",
    RequestOutcome.NO_END: "answers stopped without a finish reason: check the proxies before the model",
    RequestOutcome.SHORT: "answers ended early: the server may ignore ignore_eos; --no-ignore-eos accepts any length",
    RequestOutcome.EMPTY: "answers had no tokens: check --api and the model's chat template",
    RequestOutcome.MALFORMED: "the response does not follow this API: check --api and --url",
    RequestOutcome.TIMEOUT: "requests timed out: raise --timeout or lower the load",
    RequestOutcome.REFUSED: "the server rejects the request: its message names the reason",
}
WITH_BODY = frozenset(
    {
        RequestOutcome.FULL,
        RequestOutcome.UNAVAILABLE,
        RequestOutcome.REFUSED,
        RequestOutcome.SERVER_ERROR,
        RequestOutcome.ERROR_EVENT,
        RequestOutcome.NO_END,
        RequestOutcome.NOT_CONNECTED,
    }
)
"""Failures whose body says more than their error does."""


def hint_for(record: Record) -> str:
    """What to do about a failed request and others of its kind."""
    hint = HINT_BY_STATUS.get(record.status) or HINT_BY_OUTCOME.get(record.outcome, "")
    retry_after = f" (it asks to retry after {record.retry_after_s:g} s)" if record.retry_after_s else ""
    return hint + retry_after


def failures_table(summary: Summary) -> Table:
    """Failures by outcome, with the first example of each."""
    rows = []
    for group in summary.failures:
        first = group.examples[0]
        body = " ".join(first.body.split()) if group.outcome in WITH_BODY else ""
        rows.append((group.outcome.value, f"{group.count:,}", first.error[:ERROR_SHOWN], body[:BODY_SHOWN]))
    notes = tuple(f"{group.outcome.value}: {hint_for(group.examples[0])}" for group in summary.failures)
    return Table("Failures", ("outcome", "count", "first error", "start of its body"), tuple(rows), notes, words=True)
