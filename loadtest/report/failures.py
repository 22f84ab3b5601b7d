"""What to do about failures of one kind: one sentence each, for the report and for the last line of a lost run."""

from __future__ import annotations

from loadtest.api.record import Record
from loadtest.errors import RequestOutcome

BY_STATUS = {
    400: "the server refuses the request itself: read its words, most often a length or a field of --extra-body",
    401: "give the key with --api-key or in OPENAI_API_KEY",
    403: "this key may not do that: give another with --api-key",
    404: "the server knows no such model or path: check --model, --url and --api",
    413: "the prompts are larger than the server or a proxy before it allows: lower --input-len",
    422: "the server does not understand a field: check --api and --extra-body",
    429: "the server is full: lower --max-concurrency or --request-rate, or give it more replicas",
    502: "a proxy found no server behind it: look at the fleet",
    503: "nobody could serve: wait until the fleet is ready, or lower the load below its queue limit",
    529: "nobody could serve (Anthropic's status for it): wait until the fleet is ready",
    504: "a proxy gave up waiting: raise its time limit, or lower the load",
}
BY_OUTCOME = {
    RequestOutcome.NOT_CONNECTED: "no connection: is the server still running, and may it take so many connections?",
    RequestOutcome.SERVER_ERROR: "the server failed: its own log says why",
    RequestOutcome.ERROR_EVENT: "the server failed while it answered: its own log says why",
    RequestOutcome.CUT: "connections broke: a server or proxy ended, or has a time limit of its own",
    RequestOutcome.NO_END: "answers stopped without an end: something between here and the model swallows it",
    RequestOutcome.SHORT: "answers ended early: the server may ignore ignore_eos; --no-ignore-eos accepts any length",
    RequestOutcome.EMPTY: "answers carried no token: check --api and the model's chat template",
    RequestOutcome.MALFORMED: "the answer is not what this API sends: check --api and --url",
    RequestOutcome.TIMEOUT: "requests ran out of time: raise --timeout or lower the load",
    RequestOutcome.REFUSED: "the server refuses the request: read its words",
}


def hint_for(record: Record) -> str:
    """What to do about a failed request and those like it."""
    said = BY_STATUS.get(record.status) or BY_OUTCOME.get(record.outcome, "")
    wait = f" (it asks to come back in {record.retry_after_s:g} s)" if record.retry_after_s else ""
    return said + wait
