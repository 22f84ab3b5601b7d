"""Evaluation against a fake server on a real socket: what it sends, how it scores, and what it writes."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.training import evaluate
from models.training.__main__ import main
from models.training.eval_client import Answer, EvalClient, parse_arguments, response_format, wire_messages
from models.training.tasks import curriculum
from models.training.tasks.image_tasks import draw_image
from models.training.tasks.sample import Sample, ToolCall

METRICS = """# HELP vllm:spec_decode_num_drafts_total x
vllm:spec_decode_num_drafts_total{{engine="0"}} {drafts}
vllm:spec_decode_num_drafts_total{{engine="1"}} 10.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} {first}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="1"}} {second}
"""


def right_message(sample: Sample) -> dict[str, object]:
    """The message that a server sends for the right answer."""
    calls = [evaluate.typed_call(call, sample) for call in sample.task.calls]
    wired = [{"function": {"name": name, "arguments": json.dumps(arguments)}} for name, arguments in calls]
    return {"content": sample.task.answer + "\n", "reasoning": sample.thought, "tool_calls": wired or None}


@dataclass
class FakeServer:
    """Answers the held-out samples that it knows by their messages. Every request adds 10 drafts to the counters."""

    url: str = ""
    drafts: bool = True
    wrong: set[str] = field(default_factory=set)
    """Kinds of tasks that it answers with something else."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    known: dict[str, Sample] = field(default_factory=dict)

    def learn(self, samples: list[Sample]) -> None:
        self.known |= {json.dumps(wire_messages(sample)): sample for sample in samples}

    def get(self, path: str) -> str:
        if path == "/v1/models":
            return json.dumps({"data": [{"id": "tiny"}]})
        asked = len(self.bodies)
        return METRICS.format(drafts=10.0 * asked, first=9.0 * asked, second=5.0 * asked) if self.drafts else "up 1\n"

    def post(self, body: dict[str, Any]) -> str:
        self.bodies.append(body)
        sample = self.known.get(json.dumps(body["messages"]))
        message: dict[str, object] = {"content": "1, 2, 3"}
        if sample is not None:
            message = right_message(sample)
            if sample.task.kind in self.wrong:
                message["content"] = "no"
        usage = {"completion_tokens": body["max_tokens"] if body.get("ignore_eos") else 7}
        return json.dumps({"choices": [{"message": message}], "usage": usage})


class Listener(ThreadingHTTPServer):
    request_queue_size = 64
    """More than `evaluate` connects at once. The default of five resets connections on a busy machine."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def reply(self, content: str) -> None:
            fake.keys.append(self.headers["authorization"])
            self.send_response(200)
            self.send_header("content-length", str(len(content.encode())))
            self.end_headers()
            self.wfile.write(content.encode())

        def do_GET(self) -> None:
            self.reply(fake.get(self.path))

        def do_POST(self) -> None:
            self.reply(fake.post(json.loads(self.rfile.read(int(self.headers["content-length"])))))

        def log_message(self, *_: object) -> None:
            pass

    with Listener(("127.0.0.1", 0), Handler) as http:
        fake.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield fake
        http.shutdown()
        thread.join()


def held_out(each: int) -> list[Sample]:
    return [curriculum.draw(kind, 1_000 + i, held_out=True) for kind in curriculum.TASK_GENERATORS for i in range(each)]


def perfect(sample: Sample) -> Answer:
    calls = [evaluate.typed_call(call, sample) for call in sample.task.calls]
    return Answer(sample.thought, sample.task.answer.strip(), calls, 5)


@pytest.mark.parametrize("kind", list(curriculum.TASK_GENERATORS))
def test_the_right_answer_is_right_and_any_other_is_wrong(kind: str) -> None:
    for number in range(20):
        sample = curriculum.draw(kind, number, held_out=True)
        right = perfect(sample)
        assert evaluate.is_right(sample, right)
        assert evaluate.is_right(sample, replace(right, thought="Other words."))
        assert not evaluate.is_right(sample, replace(right, thought=""))
        assert not evaluate.is_right(sample, replace(right, text=right.text + "x"))
        assert not evaluate.is_right(sample, replace(right, calls=[*right.calls, ("get_time", {"city": "Oslo"})]))
        if right.calls:
            name, arguments = right.calls[0]
            assert isinstance(arguments, dict)
            changed = {key: f"{value}x" for key, value in arguments.items()}
            assert not evaluate.is_right(sample, replace(right, calls=[(name, changed), *right.calls[1:]]))
            assert not evaluate.is_right(sample, replace(right, calls=right.calls[1:]))


def test_arguments_are_typed_by_the_schema_of_their_tool() -> None:
    fields = {"n": {"type": "integer"}, "x": {"type": "number"}, "on": {"type": "boolean"}, "s": {"type": "string"}}
    tool: dict[str, object] = {"function": {"name": "f", "parameters": {"properties": fields}}}
    sample = replace(curriculum.draw("sum", 0, held_out=True), tools=(tool,))
    call = ToolCall("f", {"n": "7", "x": "1.5", "on": "true", "s": "12"})
    assert evaluate.typed_call(call, sample) == ("f", {"n": 7, "x": 1.5, "on": True, "s": "12"})
    assert evaluate.typed_call(ToolCall("unknown", {"n": "7"}), sample) == ("unknown", {"n": "7"})
    assert parse_arguments('{"a": 1}') == {"a": 1}
    assert parse_arguments('{"a": ') == '{"a": '


def test_messages_are_sent_as_clients_write_them() -> None:
    sample = next(s for s in (curriculum.draw("result", i, held_out=True) for i in range(50)) if len(s.task.after) == 3)
    *_, calls, first, second = wire_messages(sample)
    made = calls["tool_calls"]
    assert isinstance(made, list)
    assert [call["id"] for call in made] == ["call_0", "call_1"] == [first["tool_call_id"], second["tool_call_id"]]
    original = sample.task.after[0]["tool_calls"]
    assert isinstance(original, list)
    assert [json.loads(c["function"]["arguments"]) for c in made] == [c["function"]["arguments"] for c in original]


def test_an_image_is_sent_as_png_without_loss() -> None:
    sample = curriculum.draw("image", 4, held_out=True)
    content = wire_messages(sample)[-1]["content"]
    assert isinstance(content, list)
    (url,) = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert sample.task.image is not None
    sent = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert sent.tobytes() == draw_image(sample.task.image).tobytes()
    assert [part["type"] for part in content if part["type"] != "image_url"] == ["text"]


def test_a_request_is_greedy_and_has_the_sample_s_tools_effort_and_schema(server: FakeServer) -> None:
    client = EvalClient(server.url + "/", None, None, "secret", enforce_schemas=True)
    tool = next(s for s in (curriculum.draw("tool", i, held_out=True) for i in range(20)) if s.effort)
    plain = curriculum.draw("json", 0, held_out=True, is_plain=True)
    server.learn([tool, plain])
    assert evaluate.is_right(tool, client.ask(tool))
    assert client.ask(plain).tokens == 7
    first, second = server.bodies
    assert first["model"] == "tiny"
    assert first["temperature"] == 0
    assert first["tools"] == list(tool.tools)
    assert first["reasoning_effort"] == tool.effort
    assert "response_format" not in first
    assert second["response_format"] == response_format(json.loads(plain.task.answer))
    assert set(server.keys) == {"Bearer secret"}


def test_a_schema_has_the_types_of_its_values() -> None:
    schema = response_format({"a": "x", "b": 1, "c": 1.5, "d": True})
    fields = {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "number"}, "d": {"type": "boolean"}}
    content = schema["json_schema"]
    assert isinstance(content, dict)
    assert content["schema"] == {"type": "object", "properties": fields, "required": ["a", "b", "c", "d"]}


def test_only_http_addresses_are_opened() -> None:
    with pytest.raises(ValueError, match="not an HTTP address"):
        EvalClient("file:///etc", None, None, None)


def test_scores_acceptance_and_speed_come_from_the_server(server: FakeServer) -> None:
    server.learn(held_out(2))
    server.wrong = {"sum", "copy"}
    figures, answers = evaluate.evaluate(EvalClient(server.url, None, None, None), 2, 3, 50)
    assert figures.scores == {k: 0.0 if k in server.wrong else 1.0 for k in curriculum.TASK_GENERATORS}
    assert figures.acceptance == pytest.approx([0.9, 0.5])
    assert figures.tokens_per_draft == pytest.approx(2.4)
    assert len(answers) == len(server.bodies) - 3 == 18
    assert [body["max_tokens"] for body in server.bodies[-3:]] == [50] * 3
    assert figures.stream_tokens_per_s is not None
    assert figures.stream_tokens_per_s > 0


def test_without_drafting_or_metrics_there_is_no_acceptance(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.drafts = False
    client = EvalClient(server.url, None, None, None)
    assert client.draft_counters() == {}
    assert evaluate.acceptance({}, {}) == ([], None)
    elsewhere = EvalClient(server.url, "http://127.0.0.1:1/metrics", "tiny", None)
    assert elsewhere.draft_counters() == {}
    assert "no metrics at http://127.0.0.1:1/metrics" in capsys.readouterr().err


def test_the_command_prints_writes_and_compares(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.learn(held_out(1))
    server.wrong = {"list"}
    command = ["evaluate", "--url", server.url, "--each", "1", "--streams", "2", "--stream-tokens", "9"]
    answers, figures = tmp_path / "answers.json", tmp_path / "figures.json"
    main([*command, "--answers", str(answers), "--figures", str(figures), "--server", "a fake", "--wrong", "1"])
    printed = capsys.readouterr().out
    assert "| list | 0.0% |" in printed
    assert "| sum | 100.0% |" in printed
    assert "MTP acceptance by position: 0.90 / 0.50; 2.40 tokens per step" in printed
    assert "list/0: " in printed
    written = json.loads(figures.read_text())
    assert written["server"] == "a fake"
    assert written["each"] == 1
    assert written["scores"]["chat"] == 1.0
    main([*command, "--same-as", str(answers)])
    assert "9 of 9 answers are the same" in capsys.readouterr().out
    server.wrong, server.drafts = {"sum"}, False
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--same-as", str(answers)])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "7 of 9 answers are the same as in answers.json list/0 sum/0" in printed
    assert "MTP is off" in printed
