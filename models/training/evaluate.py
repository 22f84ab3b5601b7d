"""`python -m models.evaluate --url http://127.0.0.1:8000`: the card's figures, from a running server.

Asks the held-out set through the OpenAI API, greedily, and compares thought, answer and tool calls with what the
curriculum wants. Acceptance is read from vLLM's own counters, before and after. With `--metrics-url` they may come
from elsewhere than the API, as they do behind a proxy.
"""

import argparse
import base64
import io
import json
import re
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from models.training.tasks import curriculum
from models.training.tasks import images as pictures
from models.training.tasks.sample import Call, Message, Picture, Sample

MARGIN_TOKENS = 2_048
"""Most a held-out answer may take; the longest of the curriculum's needs about half."""
COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens_per_pos")


@dataclass(frozen=True)
class Answer:
    thought: str
    text: str
    calls: list[tuple[str, object]]
    tokens: int


def arguments_of(text: str) -> object:
    """A call's arguments; of one that was cut, as text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class Server:
    """The few calls that are needed of an OpenAI-compatible server."""

    def __init__(
        self, url: str, metrics_url: str | None, model: str | None, key: str | None, enforce_schemas: bool = False
    ) -> None:
        self.url, self.key, self.enforce_schemas = url.rstrip("/"), key, enforce_schemas
        self.metrics_url = metrics_url or f"{self.url}/metrics"
        self.model = model or self._get_model()

    def _open(self, url: str, body: object = None) -> bytes:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url} is no web address")
        headers = {"content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=600) as reply:  # noqa: S310  # checked above
            content: bytes = reply.read()
            return content

    def _get_model(self) -> str:
        return str(json.loads(self._open(f"{self.url}/v1/models"))["data"][0]["id"])

    def ask(self, sample: Sample, seed: int = 0) -> Answer:
        """One held-out request, greedy."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": wire_messages(sample),
            "temperature": 0,
            "seed": seed,
            "max_tokens": MARGIN_TOKENS,
        }
        if sample.tools:
            body["tools"] = list(sample.tools)
        if sample.effort:
            body["reasoning_effort"] = sample.effort
        if self.enforce_schemas and sample.lesson.skill == "json":
            body["response_format"] = response_format(json.loads(sample.lesson.answer))
        reply = json.loads(self._open(f"{self.url}/v1/chat/completions", body))
        message = reply["choices"][0]["message"]
        thought = message.get("reasoning") or message.get("reasoning_content") or ""
        calls = [
            (c["function"]["name"], arguments_of(c["function"]["arguments"])) for c in message.get("tool_calls") or []
        ]
        return Answer(
            thought.strip(), (message.get("content") or "").strip(), calls, reply["usage"]["completion_tokens"]
        )

    def count(self, tokens: int) -> int:
        """A stream of exactly `tokens` tokens."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Count from 1 to 900."}],
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        return int(json.loads(self._open(f"{self.url}/v1/chat/completions", body))["usage"]["completion_tokens"])

    def counters(self) -> dict[str, float]:
        """vLLM's speculative decoding counters, summed over engines; empty where nothing is drafted."""
        try:
            text = self._open(self.metrics_url).decode()
        except OSError as problem:
            print(f"no metrics at {self.metrics_url}: {problem}", file=sys.stderr)
            return {}
        sums: dict[str, float] = {}
        for name in COUNTERS:
            for labels, value in re.findall(
                rf"^vllm[:_]spec_decode_{name}_total\{{([^}}]*)\}} (\S+)", text, re.MULTILINE
            ):
                position = re.search(r'position="(\d+)"', labels)
                key = f"{name}/{position.group(1)}" if position else name
                sums[key] = sums.get(key, 0.0) + float(value)
        return sums


def data_url(picture: Picture) -> str:
    out = io.BytesIO()
    pictures.draw(picture).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def wire_messages(sample: Sample) -> list[Message]:
    """The sample's messages as a client writes them: arguments as a JSON string, images as data, calls with ids."""
    sent: list[Message] = []
    for message in sample.messages:
        copy = dict(message)
        picture = sample.lesson.picture
        if picture is not None and isinstance(content := copy.get("content"), list):
            image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
            copy["content"] = [image if part["type"] == "image" else part for part in content]
        if isinstance(calls := copy.get("tool_calls"), list):
            copy["tool_calls"] = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {"name": c["function"]["name"], "arguments": json.dumps(c["function"]["arguments"])},
                }
                for i, c in enumerate(calls)
            ]
        if copy["role"] == "tool":
            copy["tool_call_id"] = f"call_{sum(m['role'] == 'tool' for m in sent)}"
        sent.append(copy)
    return sent


def response_format(answer: dict[str, object]) -> dict[str, object]:
    """A flat object's schema, for the server to enforce."""
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number"}
    fields = {key: {"type": kinds[type(value)]} for key, value in answer.items()}
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "json_schema", "json_schema": {"name": "asked", "schema": schema}}


def typed(call: Call, sample: Sample) -> tuple[str, object]:
    """Arguments as the tool parser gives them: by the type in the schema."""
    kinds: dict[str, str] = {}
    for tool in sample.tools:
        match tool["function"]:
            case {"name": call.name, "parameters": {"properties": dict(fields)}}:
                kinds = {key: field["type"] for key, field in fields.items()}
    return call.name, {k: v if kinds.get(k, "string") == "string" else json.loads(v) for k, v in call.arguments.items()}


def is_right(sample: Sample, answer: Answer) -> bool:
    """It has thought, and its answer and calls are what the curriculum wants. The thought's wording is its own."""
    lesson = sample.lesson
    wanted = [typed(call, sample) for call in lesson.calls]
    return bool(answer.thought) and answer.text == lesson.answer.strip() and answer.calls == wanted


@dataclass(frozen=True)
class Figures:
    scores: dict[str, float]
    acceptance: list[float]
    """By position: drafts whose tokens up to there were all accepted; empty without drafting."""
    tokens_per_draft: float | None
    stream_tokens_per_s: float | None


def acceptance(before: dict[str, float], after: dict[str, float]) -> tuple[list[float], float | None]:
    drafts = after.get("num_drafts", 0.0) - before.get("num_drafts", 0.0)
    if not drafts:
        return [], None
    keys = sorted(k for k in after if k.startswith("num_accepted_tokens_per_pos/"))
    shares = [(after[k] - before.get(k, 0.0)) / drafts for k in keys]
    return shares, 1.0 + sum(shares)


def evaluate(server: Server, each: int, streams: int, stream_tokens: int) -> tuple[Figures, dict[str, Answer]]:
    """Ask everything; then, where asked for, time `streams` long streams at once."""
    asked = [
        (skill, i, curriculum.draw(skill, 1_000 + i, held_out=True)) for skill in curriculum.MAKERS for i in range(each)
    ]
    before = server.counters()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda item: server.ask(item[2]), asked))
    shares, per_draft = acceptance(before, server.counters())
    right: dict[str, list[bool]] = {}
    for (skill, _, sample), answer in zip(asked, answers, strict=True):
        right.setdefault(skill, []).append(is_right(sample, answer))
    scores = {skill: sum(marks) / len(marks) for skill, marks in right.items()}
    speed = None
    if streams:
        began = time.monotonic()
        with ThreadPoolExecutor(streams) as pool:
            total = sum(pool.map(server.count, [stream_tokens] * streams))
        speed = total / (time.monotonic() - began)
    names = [f"{skill}/{i}" for skill, i, _ in asked]
    return Figures(scores, shares, per_draft, speed), dict(zip(names, answers, strict=True))


def show(figures: Figures) -> None:
    print("| skill | held-out, greedy |\n| --- | --- |")
    for skill, score in figures.scores.items():
        print(f"| {skill} | {score:.1%} |")
    if figures.acceptance:
        listed = " / ".join(f"{share:.2f}" for share in figures.acceptance)
        print(f"\nMTP acceptance by position: {listed}; {figures.tokens_per_draft:.2f} tokens per step")
    else:
        print("\nMTP is off: nothing was drafted")
    if figures.stream_tokens_per_s:
        print(f"Output: {figures.stream_tokens_per_s:,.0f} tokens/s")


def compare(answers: dict[str, Answer], other: Path) -> int:
    """How many answers differ from those another server gave."""
    saved = json.loads(other.read_text())
    differing = [name for name, a in answers.items() if json.loads(json.dumps(asdict(a))) != saved.get(name)]
    print(f"{len(answers) - len(differing)} of {len(answers)} answers are the same as in {other.name}", *differing[:10])
    return len(differing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--metrics-url", help="where vLLM's counters are, if not at URL/metrics")
    parser.add_argument("--model")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--each", type=int, default=100, help="held-out samples per skill")
    parser.add_argument("--streams", type=int, default=16, help="streams at once for the speed; 0 leaves it out")
    parser.add_argument("--stream-tokens", type=int, default=512)
    parser.add_argument(
        "--enforce-schemas", action="store_true", help="send the schema of JSON lessons as response_format"
    )
    parser.add_argument("--answers", type=Path, help="write every answer here")
    parser.add_argument("--same-as", type=Path, help="compare with the answers another run wrote")
    parser.add_argument("--figures", type=Path, help="write the figures here, for the model card")
    parser.add_argument("--server", default="vLLM", help="what the server is, in the card's words")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers")
    options = parser.parse_args()
    server = Server(options.url, options.metrics_url, options.model, options.key, options.enforce_schemas)
    figures, answers = evaluate(server, options.each, options.streams, options.stream_tokens)
    show(figures)
    if options.wrong:
        show_wrong(answers, options.wrong)
    if options.figures:
        told = {"each": options.each, "server": options.server, **asdict(figures)}
        options.figures.write_text(json.dumps(told, indent=2) + "\n")
    if options.answers:
        options.answers.write_text(json.dumps({name: asdict(a) for name, a in answers.items()}))
    if options.same_as and compare(answers, options.same_as):
        sys.exit(1)


def show_wrong(answers: dict[str, Answer], limit: int) -> None:
    for name, answer in answers.items():
        skill, number = name.split("/")
        sample = curriculum.draw(skill, 1_000 + int(number), held_out=True)
        if limit and not is_right(sample, answer):
            limit -= 1
            print(f"\n{name}: {sample.lesson.ask!r}")
            print(f"  wanted {sample.thought!r} {sample.lesson.answer!r} {sample.lesson.calls}")
            print(f"  got    {answer.thought!r} {answer.text!r} {answer.calls}")


if __name__ == "__main__":
    main()
