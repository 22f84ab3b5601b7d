"""Events and whole responses of every API become the same answers, and violations of a protocol are noted."""

from __future__ import annotations

import json

import pytest

from chaos.events import record_event, record_whole_response
from chaos.request_spec import ChaosApi
from chaos.response_recorder import Answer, Recorder
from tests.unit.chaos_examples import ANSWER, CHAT, chat


def message(kind: str, **more: object) -> bytes:
    return json.dumps({"type": kind, **more}).encode()


MESSAGE = [
    message("message_start", message={"id": "m-1", "usage": {"input_tokens": 7, "output_tokens": 0}}),
    message("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
    message("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "AAAA"}),
    message("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "x"}),
    message("content_block_stop", index=0),
    message("ping"),
    message("content_block_start", index=1, content_block={"type": "text", "text": ""}),
    message("content_block_delta", index=1, delta={"type": "text_delta", "text": "BCDEFGHI"}),
    message("content_block_stop", index=1),
    message(
        "message_delta",
        delta={"stop_reason": "length"},
        usage={"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 12},
    ),
    message("message_stop"),
]

OUTPUT = [
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "AAAA"}]},
    {"type": "message", "content": [{"type": "output_text", "text": "BCDEFGHI"}]},
]
WHOLE_RESPONSE = {
    "id": "r-1",
    "status": "length",
    "output": OUTPUT,
    "usage": {"input_tokens": 7, "output_tokens": 12},
}
RESPONSE = [
    message("response.created", sequence_number=0, response={"id": "r-1", "status": "in_progress", "output": []}),
    message("response.reasoning_text.delta", sequence_number=1, delta="AAAA"),
    message("response.output_text.delta", sequence_number=2, delta="BCDEFGHI"),
    message("response.output_text.done", sequence_number=3, text="BCDEFGHI"),
    message("response.completed", sequence_number=4, response=WHOLE_RESPONSE),
]


def answer_from(api: ChaosApi, events: list[bytes]) -> Answer:
    recorder = Recorder()
    for event in events:
        record_event(api, recorder, event)
    return recorder.answer()


@pytest.mark.parametrize(
    ("api", "events"), [(ChaosApi.CHAT, CHAT), (ChaosApi.MESSAGES, MESSAGE), (ChaosApi.RESPONSES, RESPONSE)]
)
def test_every_api_gives_the_same_answer(api: ChaosApi, events: list[bytes]) -> None:
    assert answer_from(api, events) == ANSWER


def test_an_answer_does_not_depend_on_how_its_text_is_split_into_events() -> None:
    merged = [*CHAT[:3], chat({"content": "BCDEFGHI"}, finish="length"), *CHAT[5:]]
    assert answer_from(ChaosApi.CHAT, merged) == ANSWER


def test_a_whole_response_gives_the_same_answer_as_a_stream() -> None:
    choices = [{"message": {"reasoning": "AAAA", "content": "BCDEFGHI"}, "finish_reason": "length"}]
    usage = {"prompt_tokens": 7, "completion_tokens": 12}
    blocks = [{"type": "thinking", "thinking": "AAAA"}, {"type": "text", "text": "BCDEFGHI"}]
    wholes = {
        ChaosApi.CHAT: {"id": "1", "choices": choices, "usage": usage},
        ChaosApi.MESSAGES: {
            "content": blocks,
            "stop_reason": "length",
            "usage": {"input_tokens": 7, "output_tokens": 12},
        },
        ChaosApi.RESPONSES: WHOLE_RESPONSE,
    }
    for api, body in wholes.items():
        recorder = Recorder()
        record_whole_response(api, recorder, json.dumps(body).encode())
        assert recorder.answer() == ANSWER


def test_the_text_of_a_completion_is_content() -> None:
    event = json.dumps({"id": "1", "choices": [{"text": "AB", "finish_reason": "stop"}]}).encode()
    assert answer_from(ChaosApi.COMPLETIONS, [event]).parts == (("content", "AB"),)


def test_tool_calls_have_their_name_and_arguments_in_every_api() -> None:
    calls = [
        chat({"tool_calls": [{"index": 0, "id": "random", "function": {"name": "weather", "arguments": ""}}]}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]}, finish="tool_calls"),
    ]
    blocks = [
        message("content_block_start", index=0, content_block={"type": "tool_use", "id": "r", "name": "weather"}),
        message("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"city": "Oslo"}'}),
    ]
    events = [
        message("response.output_item.added", output_index=0, item={"type": "function_call", "name": "weather"}),
        message("response.function_call_arguments.delta", output_index=0, delta='{"city": "Oslo"}'),
    ]
    for api, stream in ((ChaosApi.CHAT, calls), (ChaosApi.MESSAGES, blocks), (ChaosApi.RESPONSES, events)):
        assert answer_from(api, stream).parts == (("tool 0", 'weather {"city": "Oslo"}'),)


ERROR = {"error": {"message": "no", "code": 503}}


@pytest.mark.parametrize(
    ("api", "events", "flaw"),
    [
        (ChaosApi.CHAT, CHAT[:-1], "the end marker is missing"),
        (ChaosApi.CHAT, [*CHAT[:4], *CHAT[5:]], "no finish reason"),
        (ChaosApi.CHAT, [*CHAT[:5], CHAT[-1]], "no usage"),
        (ChaosApi.CHAT, [*CHAT[:3], chat(**ERROR), *CHAT[3:]], "error event"),
        (ChaosApi.CHAT, [*CHAT, CHAT[3]], "after the end"),
        (ChaosApi.CHAT, [*CHAT[:5], *CHAT[4:]], "finished twice"),
        (ChaosApi.CHAT, [*CHAT[:3], chat({"content": "B"}, id="c-2"), *CHAT[3:]], "id became c-2"),
        (ChaosApi.MESSAGES, [MESSAGE[0], *MESSAGE], "second message_start"),
        (ChaosApi.MESSAGES, [*MESSAGE[:5], message("error", error={"type": "api_error"})], "error event"),
        (ChaosApi.RESPONSES, [*RESPONSE[:2], *RESPONSE[3:]], "event 3 where 2 was expected"),
        (ChaosApi.RESPONSES, [*RESPONSE[:2], *RESPONSE[3:]], "content: the closing event differs"),
        (ChaosApi.RESPONSES, RESPONSE[:4], "the end marker is missing"),
    ],
)
def test_a_violation_of_the_protocol_is_a_flaw(api: ChaosApi, events: list[bytes], flaw: str) -> None:
    assert any(flaw in found for found in answer_from(api, events).flaws)
