"""Send the fuzzer's requests to a whole service in this process, and judge every answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from urllib.parse import urlsplit

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.ingress.error_format import NOT_VALID
from tests.fuzz.requests import RawRequest, stream
from tests.http.harness import Service, service

AT_A_TIME = 8
ANSWER_WITHIN_S = 60

FOREIGN = re.compile(
    r"validation error|pydantic|Traceback|<class|\[type=|input_value|object at 0x|NoneType|__\w+__|: None|\['|\{'"
)
"""Pydantic's and Python's own words, which no client should be shown."""


@dataclass
class Findings:
    """What came of it: answers by status, and a line for each that is wrong."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)


class _Tracebacks(logging.Handler):
    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self._findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._findings.tracebacks.append(f"{record.name}: {record.getMessage()}: {record.exc_info[1]!r}"[:300])


async def run(count: int, seed: int) -> Findings:
    """`count` requests of this seed against the service over a fake engine."""
    findings = Findings()
    gc.collect()  # a task that failed before and was never asked is logged when it is collected: not one of these
    handler = _Tracebacks(findings)
    loggers = [logging.getLogger(name) for name in ("", "vllm", "uvicorn", "uvicorn.error")]
    for logger in loggers:
        logger.addHandler(handler)
    config = FakeEngineConfig(plain_token_ids=(40, 90), answer_tokens=(1, 4))
    try:
        async with service({"a": lambda sink: FakeEngine(config, sink)}) as running:
            requests = islice(stream(seed), count)
            await asyncio.gather(*(_send_all(running, requests, findings) for _ in range(AT_A_TIME)))
            _look_at_the_log(running, findings)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    return findings


async def _send_all(running: Service, requests: Iterator[RawRequest], findings: Findings) -> None:
    for request in requests:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = await _send(running, request)
        except TimeoutError:
            findings.problems.append(_line(request, 0, "no answer"))
            continue
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1]) if head.startswith(b"HTTP/") else 0
        findings.statuses[status] += 1
        problem = _judge(request, status, head, _dechunked(head, body))
        if problem:
            findings.problems.append(_line(request, status, problem))


async def _send(running: Service, request: RawRequest) -> bytes:
    address = urlsplit(running.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request.data)
        if request.http_is_broken:
            writer.write_eof()
        await writer.drain()
        return await reader.read()
    except ConnectionError:
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def _dechunked(head: bytes, body: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        whole += body[:length]
        body = body[length + 2 :]
    return whole


def _judge(request: RawRequest, status: int, head: bytes, body: bytes) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if request.http_is_broken and status in (0, 400) and b"application/json" not in head:
        return None  # the HTTP server's own refusal, or a body that never came
    if status == 0:
        return "no answer"
    if status >= 500:
        return f"a server error: {body[:300]!r}"
    if status < 400:
        return _judge_stream(body) if b"text/event-stream" in head else None
    return None if request.method == "HEAD" else _judge_error(request, body)


def _judge_error(request: RawRequest, body: bytes) -> str | None:
    """What is wrong with the body of a refusal."""
    try:
        answer = json.loads(body)
        error = answer["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        return f"not an error's shape: {body[:300]!r}"
    anthropic = set(answer) == {"type", "error", "request_id"} and set(error) == {"type", "message"}
    openai = set(answer) == {"error"} and set(error) == {"message", "type", "param", "code"}
    if not (anthropic or openai) or (openai and not isinstance(error["code"], str | None)):
        return f"not an error's shape: {body[:300]!r}"
    if "/v1/messages" in request.path and not anthropic:
        return f"not Anthropic's shape: {body[:300]!r}"
    if not 5 < len(message) <= 500 or "\n" in message or FOREIGN.search(message):
        return f"not a message for a client: {message[:400]!r}"
    return f"says nothing: {message}" if message == NOT_VALID else None


def _judge_stream(body: bytes) -> str | None:
    for line in body.split(b"\n"):
        if line.startswith((b'data: {"error"', b'data: {"type":"error"', b'data: {"type":"response.failed"')):
            return f"an error event after a 200: {line[:300]!r}"
    return None


def _look_at_the_log(running: Service, findings: Findings) -> None:
    lines = running.log.lines
    while not lines.empty():
        line = lines.get_nowait()
        if line.status >= 400 and line.context.sequences:
            error = line.context.error
            findings.problems.append(f"{line.route}: refused ({line.status}), but an engine had it: {error}")


def _line(request: RawRequest, status: int, problem: str) -> str:
    return f"{status} {request.method} {request.path}: {problem}\n    {request.body[:600]!r}"
