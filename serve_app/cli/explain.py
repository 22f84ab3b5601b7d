"""`python -m serve_app explain`: why a request took as long as it did, in the terminal."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from serve_app.observability.explain import seconds_text
from serve_app.observability.records import AttemptRecord
from serve_app.observability.search import Answer, ExplainedRecord, decode_answer

BAR_COLUMNS = 44
TIMEOUT_S = 5.0
UNITS_S = {"s": 1, "m": 60, "h": 3600}


class CannotExplain(Exception):
    """The service does not answer, or does not know the request; says what to do."""


def span_s(text: str) -> float:
    """`30s`, `10m` or `1h` in seconds. Raises ValueError."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)):
        raise ValueError(f"{text!r} is no time span; write 30s, 10m or 1h")
    return float(match[1]) * UNITS_S[match[2]]


def ask(url: str, api_key: str | None, request_id: str | None, **filters: object) -> Answer:
    """The records of one request, or those that `filters` of `GET /status/requests` name. Raises `CannotExplain`."""
    if request_id is not None:
        address = f"{url}/status/requests/{urllib.parse.quote(request_id, safe='')}"
    else:
        named = {name: value for name, value in filters.items() if value is not None}
        address = f"{url}/status/requests?{urllib.parse.urlencode(named)}"
    asked = urllib.request.Request(address)  # noqa: S310  # the service's own address, http or https
    if api_key is not None:
        asked.add_header("Authorization", f"Bearer {api_key}")
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as response:  # noqa: S310  # as above
            return decode_answer(response.read())
    except urllib.error.HTTPError as error:
        raise CannotExplain(_message(error.read(), error.code)) from error
    except (OSError, ValueError) as error:
        raise CannotExplain(f"{url} does not answer ({error}); is it running? `--url` names another address") from error


def _message(body: bytes, status: int) -> str:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = "no reason was given"
    hint = "; give a key with --api-key" if status == 401 else ""
    return f"{message} ({status}{hint})"


def table(answer: Answer) -> Iterator[str]:
    """A line for each request: when, how long, whose, and why."""
    for one in answer.requests:
        record = one.record
        when = datetime.fromtimestamp(record.received_unix_s, UTC).strftime("%H:%M:%S")
        yield f"{when}  {seconds_text(record.total_s):>8}  {record.key or '-':<12} {record.request_id}"
        yield f"{'':20}{one.sentence}"
    if not answer.requests:
        yield "No request is known that matches."
    yield from _silence(answer)


def waterfall(explained: ExplainedRecord) -> Iterator[str]:
    """One request: what it was, each phase with its time and place, each attempt, and the sentence."""
    record = explained.record
    when = datetime.fromtimestamp(record.received_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield f"{record.request_id}: {record.route}, {record.outcome} ({record.status}), {when}"
    yield (
        f"{record.prompt_tokens:,} prompt tokens, {record.cached_tokens:,} of them cached; "
        f"{record.output_tokens:,} output tokens; first token after "
        f"{seconds_text(record.first_token_s) if record.first_token_s is not None else '-'}"
    )
    yield ""
    begun_s = 0.0
    for phase, seconds in record.phases:
        yield f"  {phase:<18}{seconds_text(seconds):>9}  {_bar(begun_s, seconds, record.total_s)}"
        begun_s += seconds
    yield f"  {'total':<18}{seconds_text(record.total_s):>9}"
    yield ""
    for number, attempt in enumerate(record.attempts, start=1):
        yield f"  attempt {number}: {_attempt(attempt)}"
    if record.trace_id:
        yield f"  trace {record.trace_id}"
    yield explained.sentence


def _bar(begun_s: float, seconds: float, total_s: float) -> str:
    scale = BAR_COLUMNS / total_s if total_s > 0 else 0.0
    start = min(int(begun_s * scale), BAR_COLUMNS - 1)
    return " " * start + "█" * max(1, round(seconds * scale))


def _attempt(attempt: AttemptRecord) -> str:
    tokens = f"{attempt.tokens:,} tokens in {attempt.steps:,} steps" if attempt.steps else "no token"
    return (
        f"replica {attempt.replica_id} ({attempt.reason}), sent after {seconds_text(attempt.dispatched_s)}, "
        f"{attempt.missing_tokens:,} tokens to compute; {tokens}, {attempt.end}"
    )


def _silence(answer: Answer) -> Iterator[str]:
    if answer.silent_ingresses:
        yield f"({answer.silent_ingresses} ingress replicas did not answer: theirs are missing.)"


def render(answer: Answer, *, one_request: bool) -> str:
    """What is printed."""
    lines = table(answer) if not one_request else (line for one in answer.requests for line in (*waterfall(one), ""))
    return "\n".join(lines).rstrip("\n")


def as_json(answer: Answer) -> str:
    """The answer for programs."""
    return msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()
