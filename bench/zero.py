"""`python -m bench zero`: the fleet goes to zero, and requests bring it back. Are all answered, and after how long?

In each round nobody asks until no engine is left. Then requests come (chat and messages, streamed and not) over half of
the time of a start. With fake engines, or with `--real` the demo model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from bench.measure import LOGS
from bench.servers import Servers, StartFailed, ours

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
KINDS = ((CHAT, True), (MESSAGES, True), (CHAT, False), (MESSAGES, False))
"""Path, and whether the answer is streamed: the requests are of these in turn."""

ENDS = ('"finish_reason":"', '"stop_reason":"', "message_stop")
"""What is in an answer that is complete."""

FIRST_TOKENS = ('"content":"', '"reasoning":"', '"reasoning_content":"', "content_block_delta")
POLL_S = 0.25
EDGE_S = (-0.5, 3.0)
"""Around the idle time: the replica says that it is idle, the controller decides, Serve stops it."""
WAITED_S = 2.0
ASLEEP_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Answer:
    """One request. `error` is empty where it was answered to its end; `first_token_s` (of a stream that says one) and
    `total_s` count from when it was sent, `sent_s` from when the round's first one was."""

    error: str
    sent_s: float
    total_s: float
    first_token_s: float | None = None


@dataclass(frozen=True)
class Round:
    """One time to zero and back. `expected_s` is what the service said when it was woken, None if nothing."""

    slept_s: float
    expected_s: float | None
    answers: Sequence[Answer]

    @property
    def failed(self) -> list[Answer]:
        """The requests that were not answered."""
        return [one for one in self.answers if one.error]

    @property
    def start_s(self) -> float:
        """From the first request to the first token of any."""
        return min(one.sent_s + one.first_token_s for one in self.answers if one.first_token_s is not None)

    @property
    def error_ratio(self) -> float | None:
        """How far off the expected time was."""
        return None if self.expected_s is None else self.expected_s / self.start_s - 1


def settings(options: argparse.Namespace) -> dict[str, object]:
    """The application's arguments."""
    replicas = {"min": 0, "max": 1, "idle_to_zero_s": options.idle_s, "upscale_delay_s": 1}
    if options.real:
        return {"replicas": replicas, "ingress": {"min_replicas": 1, "max_replicas": 1}}
    fake = {"plain_token_ids": [32, 57], "answer_tokens": [12, 24], "gap_s": 0.01, "start_s": options.start_s}
    return {
        "engine": {"kind": "fake", "fake": fake},
        "replicas": replicas,
        "ingress": {"min_replicas": options.ingresses, "max_replicas": options.ingresses},
    }


async def fleet(client: httpx.AsyncClient) -> dict[str, Any]:
    """`/status/fleet`."""
    answer: dict[str, Any] = (await client.get("/status/fleet")).json()
    return answer


async def until(client: httpx.AsyncClient, state: str, engines: int) -> float:
    """Wait for this state of the fleet and so many engines in Serve, and return how long that took. Raises
    `TimeoutError`."""
    began_s = time.monotonic()
    async with asyncio.timeout(ASLEEP_TIMEOUT_S):
        while True:
            seen = await fleet(client)
            found = [len(one["replicas"]) for one in seen["deployments"] if one["name"] == "engine"]
            if seen["state"] == state and found == [engines]:
                return time.monotonic() - began_s
            await asyncio.sleep(POLL_S)


async def ask(client: httpx.AsyncClient, number: int, began_s: float, after_s: float, model: str) -> Answer:
    """Send one request so long after the round's begin."""
    path, stream = KINDS[number % len(KINDS)]
    await asyncio.sleep(max(began_s + after_s - time.monotonic(), 0))
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Say {number}."}],
        "max_tokens": 32,
        "stream": stream,
    }
    sent_s, first_token_s, text = time.monotonic(), None, ""
    error = ""
    try:
        async with client.stream("POST", path, json=body) as response:
            async for line in response.aiter_lines():
                if stream and first_token_s is None and any(mark in line for mark in FIRST_TOKENS):
                    first_token_s = time.monotonic() - sent_s
                text += line + "\n"
            if response.status_code != httpx.codes.OK or '"error"' in text:
                error = f"{response.status_code} {text[:300]}"
            elif not any(end in text for end in ENDS):
                error = f"incomplete: {text[-300:]}"
    except httpx.HTTPError as problem:
        error = repr(problem)
    return Answer(error, sent_s - began_s, time.monotonic() - sent_s, first_token_s)


async def one_round(client: httpx.AsyncClient, requests: int, model: str) -> Round:
    """To zero, and back with so many requests."""
    slept_s = await until(client, "asleep", 0)
    expected_s = (await fleet(client))["left_s"]
    spread_s = (expected_s or 10.0) / 2
    began_s = time.monotonic()
    sent = (ask(client, number, began_s, spread_s * number / requests, model) for number in range(requests))
    return Round(slept_s, expected_s, await asyncio.gather(*sent))


async def at_the_edge(client: httpx.AsyncClient, options: argparse.Namespace, model: str) -> Round:
    """Single requests that come about when the last engine goes: just before, as it stops, or just after."""
    spread = random.Random(options.requests)
    answers = []
    for number in range(options.edge):
        await asyncio.sleep(options.idle_s + spread.uniform(*EDGE_S))
        answers.append(await ask(client, number, time.monotonic(), 0.0, model))
    waited = sum(one.total_s > WAITED_S for one in answers)
    print(f"at the edge: {len(answers)} requests, of which {waited} waited for an engine", flush=True)
    return Round(0.0, None, answers)


async def measure(url: str, options: argparse.Namespace) -> list[Round]:
    """All rounds, each told as it ends."""
    limits = httpx.Limits(max_connections=None)
    rounds: list[Round] = []
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=600, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        # The first engine may be gone before an ingress has seen it: this wake is for knowing what one takes.
        await ask(client, 0, time.monotonic(), 0.0, model)
        for number in range(options.rounds):
            rounds.append(await one_round(client, options.requests, model))
            print(f"round {number + 1}: {line(rounds[-1])}", flush=True)
        if options.edge:
            rounds.append(await at_the_edge(client, options, model))
    for one in [answer for each in rounds for answer in each.failed][:5]:
        print(f"failed: {one.error}", flush=True)
    return rounds


def line(one: Round) -> str:
    """A round in words."""
    firsts = sorted(answer.first_token_s for answer in one.answers if answer.first_token_s is not None)
    off = "nothing was known" if one.error_ratio is None else f"off by {one.error_ratio:+.0%}"
    expected = "-" if one.expected_s is None else f"{one.expected_s:.1f} s"
    waits = f"{statistics.median(firsts):.1f} s median, {firsts[-1]:.1f} s longest" if firsts else "none"
    back = f"{one.start_s:.1f} s" if firsts else "never"
    return (
        f"{len(one.answers) - len(one.failed)} of {len(one.answers)} answered; back after {back}, said {expected} "
        f"({off}); to the first token {waits}; asleep {one.slept_s:.1f} s after the last answer"
    )


def summary(rounds: Sequence[Round]) -> Mapping[str, float | int]:
    """The figures of all rounds."""
    answers = [answer for one in rounds for answer in one.answers]
    errors = [abs(one.error_ratio) for one in rounds if one.error_ratio is not None]
    return {
        "requests": len(answers),
        "answered": sum(not one.error for one in answers),
        "worst_estimate_error_ratio": round(max(errors, default=0.0), 3),
    }


def main(argv: Sequence[str]) -> int:
    """Returns 0 where every request was answered, 1 if not or if the service did not start."""
    parser = argparse.ArgumentParser(prog="python -m bench zero", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100, help="of each round")
    parser.add_argument("--edge", type=int, default=0, help="also so many requests about when the engine goes")
    parser.add_argument("--start-s", type=float, default=8.0, help="how long a fake engine takes to start")
    parser.add_argument("--idle-s", type=float, default=5.0, help="replicas.idle_to_zero_s")
    parser.add_argument("--ingresses", type=int, default=2)
    parser.add_argument("--real", action="store_true", help="the demo model, in place of fake engines")
    options = parser.parse_args(argv)
    try:
        with Servers(LOGS, settings(options)) as servers:
            server = servers.start(ours("zero"))
            rounds = asyncio.run(measure(f"http://127.0.0.1:{server.port}", options))
    except (StartFailed, TimeoutError, httpx.HTTPError) as error:
        print(f"error: {error!r}", file=sys.stderr)
        return 1
    result = summary(rounds)
    print(json.dumps(result))
    return 0 if result["answered"] == result["requests"] else 1
