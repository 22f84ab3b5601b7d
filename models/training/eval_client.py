"""A client of an OpenAI-compatible server, for the evaluation: sends samples and reads answers and vLLM's counters."""

import base64
import io
import json
import re
import sys
import urllib.request
from dataclasses import dataclass

from models.training.tasks.image_tasks import draw_image
from models.training.tasks.sample import FigureImage, Message, Sample

MAX_ANSWER_TOKENS = 2_048
"""About twice the longest right answer."""
TIMEOUT_S = 600
COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens_per_pos")


@dataclass(frozen=True)
class Answer:
    thought: str
    text: str
    calls: list[tuple[str, object]]
    """Names and arguments."""
    tokens: int
    """Completion tokens."""


class EvalClient:
    """Sends requests to one server. Raises `ValueError` for an address that is not HTTP."""

    def __init__(
        self, url: str, metrics_url: str | None, model: str | None, key: str | None, enforce_schemas: bool = False
    ) -> None:
        self.url, self.key, self.enforce_schemas = url.rstrip("/"), key, enforce_schemas
        self.metrics_url = metrics_url or f"{self.url}/metrics"
        self.model = model or self._get_model()

    def _open(self, url: str, body: object = None) -> bytes:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url} is not an HTTP address")
        headers = {"content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers)  # noqa: S310  # checked above
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310  # checked above
            content: bytes = reply.read()
            return content

    def _get_model(self) -> str:
        return str(json.loads(self._open(f"{self.url}/v1/models"))["data"][0]["id"])

    def ask(self, sample: Sample, seed: int = 0) -> Answer:
        """The server's greedy answer to a sample."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": wire_messages(sample),
            "temperature": 0,
            "seed": seed,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        if sample.tools:
            body["tools"] = list(sample.tools)
        if sample.effort:
            body["reasoning_effort"] = sample.effort
        if self.enforce_schemas and sample.task.kind == "json":
            body["response_format"] = response_format(json.loads(sample.task.answer))
        reply = json.loads(self._open(f"{self.url}/v1/chat/completions", body))
        message = reply["choices"][0]["message"]
        thought = message.get("reasoning") or message.get("reasoning_content") or ""
        calls = [
            (c["function"]["name"], parse_arguments(c["function"]["arguments"]))
            for c in message.get("tool_calls") or []
        ]
        content = message.get("content") or ""
        return Answer(thought.strip(), content.strip(), calls, reply["usage"]["completion_tokens"])

    def generate(self, tokens: int) -> int:
        """Generate exactly `tokens` tokens of a count, and return how many the server reports."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Count from 1 to 900."}],
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        return int(json.loads(self._open(f"{self.url}/v1/chat/completions", body))["usage"]["completion_tokens"])

    def draft_counters(self) -> dict[str, float]:
        """vLLM's speculative decoding counters summed over engines, by `NAME` or `NAME/POSITION`.

        Empty if nothing is drafted. Unreachable metrics are reported on stderr and give an empty result as well.
        """
        try:
            text = self._open(self.metrics_url).decode()
        except OSError as error:
            print(f"no metrics at {self.metrics_url}: {error}", file=sys.stderr)
            return {}
        sums: dict[str, float] = {}
        for name in COUNTERS:
            pattern = rf"^vllm[:_]spec_decode_{name}_total\{{([^}}]*)\}} (\S+)"
            for labels, value in re.findall(pattern, text, re.MULTILINE):
                position = re.search(r'position="(\d+)"', labels)
                key = f"{name}/{position.group(1)}" if position else name
                sums[key] = sums.get(key, 0.0) + float(value)
        return sums


def parse_arguments(text: str) -> object:
    """A call's arguments from JSON, or the text itself if it is not JSON, as where the answer was cut."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def data_url(image: FigureImage) -> str:
    """The image as PNG in a data URL."""
    png = io.BytesIO()
    draw_image(image).save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def wire_messages(sample: Sample) -> list[Message]:
    """The sample's messages as a client sends them: arguments as JSON text, images as data URLs, calls with ids."""
    wired: list[Message] = []
    for message in sample.messages:
        copy = dict(message)
        image = sample.task.image
        if image is not None and isinstance(content := copy.get("content"), list):
            image_part = {"type": "image_url", "image_url": {"url": data_url(image)}}
            copy["content"] = [image_part if part["type"] == "image" else part for part in content]
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
            copy["tool_call_id"] = f"call_{sum(m['role'] == 'tool' for m in wired)}"
        wired.append(copy)
    return wired


def response_format(answer: dict[str, object]) -> dict[str, object]:
    """A `response_format` with the JSON schema of a flat object."""
    json_types = {str: "string", bool: "boolean", int: "integer", float: "number"}
    fields = {key: {"type": json_types[type(value)]} for key, value in answer.items()}
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "json_schema", "json_schema": {"name": "asked", "schema": schema}}
