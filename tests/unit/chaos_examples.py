"""What the tests of chaos share: requests, an answer, a recording, options and a process to signal."""

from __future__ import annotations

import argparse
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from chaos import options
from chaos.analysis import Findings, InjectedFault, StreamResult
from chaos.options import ChaosOptions
from chaos.request_spec import ChaosApi, PromptKind, RequestRules, RequestSpec, draw_requests
from chaos.response_recorder import Answer
from chaos.stream import Recording

RULES = RequestRules("m", tuple(ChaosApi), tuple(PromptKind), (40, 200), seed=0)
SPEC = draw_requests(RULES, 1)[0]
ANSWER = Answer((("reasoning", "AAAA"), ("content", "BCDEFGHI")), "length", 7, 12)


def chat(delta: dict[str, object] | None = None, **more: object) -> bytes:
    """A chat chunk."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}]
    return json.dumps({"id": "c-1", "choices": choices, **more}).encode()


CHAT = [
    chat({"role": "assistant", "content": ""}),
    chat({"reasoning": "AA"}),
    chat({"reasoning": "AA"}),
    chat({"content": "BCDE"}),
    chat({"content": "FGHI"}, finish="length"),
    chat(usage={"prompt_tokens": 7, "completion_tokens": 12}),
    b"[DONE]",
]
"""A stream of the chat API that brings `ANSWER`."""


def options_of(*flags: str) -> ChaosOptions:
    parser = argparse.ArgumentParser()
    options.add_flags(parser)
    return options.read(parser.parse_args(flags))


def recording(
    spec: RequestSpec = SPEC, answer: Answer = ANSWER, *, error: str = "", request_id: str = "r", text_s: str = "0 1 5"
) -> Recording:
    return Recording(spec, request_id, 200, answer, error, "", 0.0, 10.0, tuple(map(float, text_s.split())))


def findings_of(*streams: StreamResult, **more: object) -> Findings:
    """A run of one request, with one fault at 2 s on replica `a`."""
    injected = InjectedFault(0, "kill", "a", "pid 1", 5, 0, 2.0, 0.0)
    return replace(Findings({0: recording()}, list(streams), [injected], unfinished=0), **more)


@contextmanager
def sleeping_process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    """The kernel sets no event when a process stops or runs."""
    clock = threading.Event()
    for _ in range(500):
        if condition():
            return
        clock.wait(0.01)
    raise AssertionError("not within five seconds")
