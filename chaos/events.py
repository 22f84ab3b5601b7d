"""What the four protocols say in an event, or in an answer that comes in one piece: taken into a `Recorder`.

Only fields that a client could act on are read. Comments and pings say nothing.
"""

from __future__ import annotations

import msgspec

from chaos.request_spec import Api
from chaos.response_recorder import Recorder, Usage

NULL = msgspec.Raw(b"null")


def take_event(api: Api, recorder: Recorder, data: bytes) -> None:
    """One event of a stream. Raises `msgspec.DecodeError` for what is not the protocol."""
    if recorder.ended:
        recorder.flaws.append(f"an event after the end: {data[:200].decode(errors='replace')}")
    _EVENTS[api](recorder, data)


def take_whole(api: Api, recorder: Recorder, data: bytes) -> None:
    """An answer that came in one piece. Raises `msgspec.DecodeError`."""
    _WHOLES[api](recorder, data)
    recorder.ended = True


def _is_error(recorder: Recorder, error: msgspec.Raw) -> bool:
    if not error or error == NULL:
        return False
    recorder.flaws.append(f"error event: {bytes(error).decode(errors='replace')}")
    return True


# ---- chat and text completions ---------------------------------------------------------------------------------------


class Function(msgspec.Struct):
    """A tool call's name and more of its arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """What a chunk adds to a tool call; whole answers give no index."""

    index: int | None = None
    function: Function | None = None


class ChatMessage(msgspec.Struct):
    """A chat chunk's `delta`, a chat answer's `message`."""

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    """Of chat (`delta`, `message`) and text completions (`text`)."""

    delta: ChatMessage | None = None
    message: ChatMessage | None = None
    text: str | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """A chunk or a whole answer of chat or text completions."""

    id: str = ""
    choices: list[Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_completion = msgspec.json.Decoder(Completion)


def take_completion(recorder: Recorder, data: bytes) -> None:
    """A chunk, the end marker, or a whole answer."""
    if data == b"[DONE]":
        recorder.ended = True
        return
    event = _completion.decode(data)
    if _is_error(recorder, event.error):
        return
    recorder.check_identity(event.id)
    for choice in event.choices:
        message = choice.delta or choice.message or ChatMessage(content=choice.text)
        recorder.text("reasoning", message.reasoning)
        recorder.text("content", message.content)
        for number, call in enumerate(message.tool_calls or []):
            _take_call(recorder, number if call.index is None else call.index, call.function or Function())
        recorder.set_finish(choice.finish_reason)
    recorder.usage = event.usage or recorder.usage


def _take_call(recorder: Recorder, number: int, function: Function) -> None:
    recorder.text(f"tool {number}", f"{function.name} " if function.name else None)
    recorder.text(f"tool {number}", function.arguments)


# ---- Anthropic's messages --------------------------------------------------------------------------------------------


class Block(msgspec.Struct):
    """A content block, or what a delta adds to one."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    stop_reason: str | None = None


class Message(msgspec.Struct):
    """A whole answer, and the head of a stream."""

    id: str = ""
    content: list[Block] = []
    stop_reason: str | None = None
    usage: Usage | None = None


class MessageEvent(msgspec.Struct):
    """An event of the stream."""

    type: str = ""
    index: int = 0
    message: Message | None = None
    content_block: Block | None = None
    delta: Block | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_message = msgspec.json.Decoder(Message)
_message_event = msgspec.json.Decoder(MessageEvent)


def take_message_event(recorder: Recorder, data: bytes) -> None:
    """One event."""
    event = _message_event.decode(data)
    if _is_error(recorder, event.error):
        return
    if event.message is not None:
        if recorder.identity:
            recorder.flaws.append("a second message_start")
        recorder.check_identity(event.message.id)
    block = event.content_block or event.delta or Block()
    recorder.text("reasoning", block.thinking)
    recorder.text("content", block.text)
    tool = f"tool {event.index}"
    recorder.text(tool, f"{block.name} " if block.name else None)
    recorder.text(tool, block.partial_json)
    recorder.set_finish(block.stop_reason)
    # The head counts the prompt before anything is known of its cached part: the last word is the closing event's.
    recorder.usage = event.usage or recorder.usage
    recorder.ended = event.type == "message_stop"


def take_message(recorder: Recorder, data: bytes) -> None:
    """A whole answer."""
    event = _message.decode(data)
    for number, block in enumerate(event.content):
        recorder.text("reasoning", block.thinking)
        recorder.text("content", block.text)
        if block.name:
            recorder.text(f"tool {number}", f"{block.name} {bytes(block.input).decode()}")
    recorder.set_finish(event.stop_reason)
    recorder.usage = event.usage


# ---- responses -------------------------------------------------------------------------------------------------------

CHANNELS = {
    "response.output_text.delta": "content",
    "response.reasoning_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool",
}
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ResponsePart(msgspec.Struct):
    """Text of an output item."""

    text: str | None = None


class OutputItem(msgspec.Struct):
    """One output: a message, thoughts, a function call."""

    type: str = ""
    content: list[ResponsePart] | None = None
    name: str | None = None
    arguments: str | None = None


class Response(msgspec.Struct):
    """A whole answer, and what a stream's last event carries."""

    id: str = ""
    status: str = ""
    output: list[OutputItem] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class ResponseEvent(msgspec.Struct):
    """An event of the stream."""

    type: str = ""
    sequence_number: int | None = None
    output_index: int = 0
    delta: str | None = None
    item: OutputItem | None = None
    response: Response | None = None
    error: msgspec.Raw = msgspec.Raw()
    message: str | None = None


_response = msgspec.json.Decoder(Response)
_response_event = msgspec.json.Decoder(ResponseEvent)


def take_response_event(recorder: Recorder, data: bytes) -> None:
    """One event. Its number must follow the last one's."""
    event = _response_event.decode(data)
    if event.type == "error":
        recorder.flaws.append(f"error event: {data.decode(errors='replace')}")
    if _is_error(recorder, event.error):
        return
    if event.sequence_number is not None:
        recorder.check_number(event.sequence_number)
    channel = CHANNELS.get(event.type)
    if channel is not None:
        recorder.text(f"tool {event.output_index}" if channel == "tool" else channel, event.delta)
    elif event.type == "response.output_item.added" and event.item is not None and event.item.type == "function_call":
        recorder.text(f"tool {event.output_index}", f"{event.item.name} ")
    if event.response is not None:
        recorder.check_identity(event.response.id)
        if event.type in LAST_EVENTS:
            _end_response(recorder, event.response)


def _end_response(recorder: Recorder, response: Response) -> None:
    streamed, summary = recorder.text_by_channel(), Recorder()
    _take_output(summary, response)
    for channel in sorted({*streamed, *summary.text_by_channel()}):
        if streamed.get(channel, "") != summary.text_by_channel().get(channel, ""):
            recorder.flaws.append(f"{channel}: the closing event does not say what was streamed")
    _is_error(recorder, response.error)
    recorder.set_finish(response.status)
    recorder.usage = response.usage
    recorder.ended = True


def take_response(recorder: Recorder, data: bytes) -> None:
    """A whole answer."""
    response = _response.decode(data)
    _take_output(recorder, response)
    recorder.set_finish(response.status)
    recorder.usage = response.usage


def _take_output(recorder: Recorder, response: Response) -> None:
    for number, item in enumerate(response.output):
        if item.type == "function_call":
            recorder.text(f"tool {number}", f"{item.name} {item.arguments or ''}")
        for part in item.content or []:
            recorder.text("reasoning" if item.type == "reasoning" else "content", part.text)


_EVENTS = {
    Api.CHAT: take_completion,
    Api.COMPLETIONS: take_completion,
    Api.MESSAGES: take_message_event,
    Api.RESPONSES: take_response_event,
}
_WHOLES = {
    Api.CHAT: take_completion,
    Api.COMPLETIONS: take_completion,
    Api.MESSAGES: take_message,
    Api.RESPONSES: take_response,
}
