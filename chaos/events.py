"""Decode the events and whole responses of four APIs into a `Recorder`.

Only fields that a client can act on are read. Comments and pings are ignored.
"""

from __future__ import annotations

import msgspec

from chaos.request_spec import ChaosApi
from chaos.response_recorder import Recorder
from loadtest.api.event_schema import (
    ContentBlock,
    Delta,
    Function,
    MessageDelta,
    MessageEvent,
    MessageHead,
    OpenAiChunk,
    ResponseEvent,
    ResponseObject,
    ToolCall,
)

NULL = msgspec.Raw(b"null")

CHANNELS = {
    "response.output_text.delta": "content",
    "response.reasoning_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool",
}
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})

_chunk = msgspec.json.Decoder(OpenAiChunk)
_tool_call = msgspec.json.Decoder(ToolCall)
_message = msgspec.json.Decoder(MessageHead)
_message_event = msgspec.json.Decoder(MessageEvent)
_response = msgspec.json.Decoder(ResponseObject)
_response_event = msgspec.json.Decoder(ResponseEvent)


def record_event(api: ChaosApi, recorder: Recorder, data: bytes) -> None:
    """Record one event of a stream. Raises `msgspec.DecodeError` where the data does not follow the protocol."""
    if recorder.ended:
        recorder.flaws.append(f"an event after the end: {data[:200].decode(errors='replace')}")
    _EVENTS[api](recorder, data)


def record_whole_response(api: ChaosApi, recorder: Recorder, data: bytes) -> None:
    """Record a response that is not streamed. Raises `msgspec.DecodeError`."""
    _WHOLE_RESPONSES[api](recorder, data)
    recorder.ended = True


def _is_error(recorder: Recorder, error: msgspec.Raw) -> bool:
    if not error or error == NULL:
        return False
    recorder.flaws.append(f"error event: {bytes(error).decode(errors='replace')}")
    return True


# ---- chat and text completions ---------------------------------------------------------------------------------------


def _record_completion(recorder: Recorder, data: bytes) -> None:
    """A chunk, the end marker, or a whole response."""
    if data == b"[DONE]":
        recorder.ended = True
        return
    chunk = _chunk.decode(data)
    if _is_error(recorder, chunk.error):
        return
    recorder.check_id(chunk.id)
    for choice in chunk.choices:
        delta = choice.delta or choice.message or Delta(content=choice.text)
        recorder.text("reasoning", delta.reasoning)
        recorder.text("content", delta.content)
        for position, raw in enumerate(delta.tool_calls or []):
            call = _tool_call.decode(raw)
            _record_tool_call(recorder, position if call.index is None else call.index, call.function or Function())
        recorder.set_finish(choice.finish_reason)
    recorder.usage = chunk.usage or recorder.usage


def _record_tool_call(recorder: Recorder, index: int, function: Function) -> None:
    recorder.text(f"tool {index}", f"{function.name} " if function.name else None)
    recorder.text(f"tool {index}", function.arguments)


# ---- Anthropic's messages --------------------------------------------------------------------------------------------


def _record_message_event(recorder: Recorder, data: bytes) -> None:
    event = _message_event.decode(data)
    if _is_error(recorder, event.error):
        return
    if event.message is not None:
        if recorder.id:
            recorder.flaws.append("a second message_start")
        recorder.check_id(event.message.id)
    block, delta = event.content_block or ContentBlock(), event.delta or MessageDelta()
    tool = f"tool {event.index or 0}"
    recorder.text("reasoning", block.thinking or delta.thinking)
    recorder.text("content", block.text or delta.text)
    recorder.text(tool, f"{block.name} " if block.name else None)
    recorder.text(tool, delta.partial_json)
    recorder.set_finish(delta.stop_reason)
    # The first event's prompt count does not yet tell cached tokens apart. The closing event's is final.
    recorder.usage = event.usage or recorder.usage
    recorder.ended = event.type == "message_stop"


def _record_message(recorder: Recorder, data: bytes) -> None:
    message = _message.decode(data)
    for position, block in enumerate(message.content or []):
        recorder.text("reasoning", block.thinking)
        recorder.text("content", block.text)
        if block.name:
            recorder.text(f"tool {position}", f"{block.name} {bytes(block.input).decode()}")
    recorder.set_finish(message.stop_reason)
    recorder.usage = message.usage


# ---- OpenAI's responses ----------------------------------------------------------------------------------------------


def _record_response_event(recorder: Recorder, data: bytes) -> None:
    event = _response_event.decode(data)
    if event.type == "error":
        recorder.flaws.append(f"error event: {data.decode(errors='replace')}")
    if _is_error(recorder, event.error):
        return
    if event.sequence_number is not None:
        recorder.check_sequence_number(event.sequence_number)
    channel = CHANNELS.get(event.type)
    if channel is not None:
        recorder.text(f"tool {event.output_index}" if channel == "tool" else channel, event.delta)
    elif event.type == "response.output_item.added" and event.item is not None and event.item.type == "function_call":
        recorder.text(f"tool {event.output_index}", f"{event.item.name} ")
    if event.response is not None:
        recorder.check_id(event.response.id)
        if event.type in LAST_EVENTS:
            _end_response(recorder, event.response)


def _end_response(recorder: Recorder, response: ResponseObject) -> None:
    """Compare the closing event's output with what was streamed."""
    closing = Recorder()
    _record_output(closing, response)
    streamed, summary = recorder.text_by_channel(), closing.text_by_channel()
    for channel in sorted({*streamed, *summary}):
        if streamed.get(channel, "") != summary.get(channel, ""):
            recorder.flaws.append(f"{channel}: the closing event differs from what was streamed")
    _is_error(recorder, response.error)
    recorder.set_finish(response.status)
    recorder.usage = response.usage
    recorder.ended = True


def _record_response(recorder: Recorder, data: bytes) -> None:
    response = _response.decode(data)
    _record_output(recorder, response)
    recorder.set_finish(response.status)
    recorder.usage = response.usage


def _record_output(recorder: Recorder, response: ResponseObject) -> None:
    for position, item in enumerate(response.output):
        if item.type == "function_call":
            recorder.text(f"tool {position}", f"{item.name} {item.arguments or ''}")
        for part in item.content or []:
            recorder.text("reasoning" if item.type == "reasoning" else "content", part.text)


_EVENTS = {
    ChaosApi.CHAT: _record_completion,
    ChaosApi.COMPLETIONS: _record_completion,
    ChaosApi.MESSAGES: _record_message_event,
    ChaosApi.RESPONSES: _record_response_event,
}
_WHOLE_RESPONSES = {
    ChaosApi.CHAT: _record_completion,
    ChaosApi.COMPLETIONS: _record_completion,
    ChaosApi.MESSAGES: _record_message,
    ChaosApi.RESPONSES: _record_response,
}
