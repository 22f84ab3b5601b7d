"""What the four protocols say in an event, or in an answer that comes in one piece: taken into a `Recorder`.

Only fields that a client could act on are read. Comments and pings say nothing.
"""

from __future__ import annotations

import msgspec

from chaos.request_spec import Api
from chaos.response_recorder import Recorder, Usage

NULL = msgspec.Raw(b"null")


def take_event(api: Api, hearing: Recorder, data: bytes) -> None:
    """One event of a stream. Raises `msgspec.DecodeError` for what is not the protocol."""
    if hearing.ended:
        hearing.flaws.append(f"an event after the end: {data[:200].decode(errors='replace')}")
    _EVENTS[api](hearing, data)


def take_whole(api: Api, hearing: Recorder, data: bytes) -> None:
    """An answer that came in one piece. Raises `msgspec.DecodeError`."""
    _WHOLES[api](hearing, data)
    hearing.ended = True


def _is_error(hearing: Recorder, error: msgspec.Raw) -> bool:
    if not error or error == NULL:
        return False
    hearing.flaws.append(f"error event: {bytes(error).decode(errors='replace')}")
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


class Said(msgspec.Struct):
    """A chat chunk's `delta`, a chat answer's `message`."""

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    """Of chat (`delta`, `message`) and text completions (`text`)."""

    delta: Said | None = None
    message: Said | None = None
    text: str | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """A chunk or a whole answer of chat or text completions."""

    id: str = ""
    choices: list[Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_completion = msgspec.json.Decoder(Completion)


def take_completion(hearing: Recorder, data: bytes) -> None:
    """A chunk, the end marker, or a whole answer."""
    if data == b"[DONE]":
        hearing.ended = True
        return
    said = _completion.decode(data)
    if _is_error(hearing, said.error):
        return
    hearing.is_from(said.id)
    for choice in said.choices:
        message = choice.delta or choice.message or Said(content=choice.text)
        hearing.text("reasoning", message.reasoning)
        hearing.text("content", message.content)
        for number, call in enumerate(message.tool_calls or []):
            _take_call(hearing, number if call.index is None else call.index, call.function or Function())
        hearing.finishes(choice.finish_reason)
    hearing.usage = said.usage or hearing.usage


def _take_call(hearing: Recorder, number: int, function: Function) -> None:
    hearing.text(f"tool {number}", f"{function.name} " if function.name else None)
    hearing.text(f"tool {number}", function.arguments)


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


def take_message_event(hearing: Recorder, data: bytes) -> None:
    """One event."""
    said = _message_event.decode(data)
    if _is_error(hearing, said.error):
        return
    if said.message is not None:
        if hearing.identity:
            hearing.flaws.append("a second message_start")
        hearing.is_from(said.message.id)
    block = said.content_block or said.delta or Block()
    hearing.text("reasoning", block.thinking)
    hearing.text("content", block.text)
    tool = f"tool {said.index}"
    hearing.text(tool, f"{block.name} " if block.name else None)
    hearing.text(tool, block.partial_json)
    hearing.finishes(block.stop_reason)
    # The head counts the prompt before anything is known of its cached part: the last word is the closing event's.
    hearing.usage = said.usage or hearing.usage
    hearing.ended = said.type == "message_stop"


def take_message(hearing: Recorder, data: bytes) -> None:
    """A whole answer."""
    said = _message.decode(data)
    for number, block in enumerate(said.content):
        hearing.text("reasoning", block.thinking)
        hearing.text("content", block.text)
        if block.name:
            hearing.text(f"tool {number}", f"{block.name} {bytes(block.input).decode()}")
    hearing.finishes(said.stop_reason)
    hearing.usage = said.usage


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


def take_response_event(hearing: Recorder, data: bytes) -> None:
    """One event. Its number must follow the last one's."""
    said = _response_event.decode(data)
    if said.type == "error":
        hearing.flaws.append(f"error event: {data.decode(errors='replace')}")
    if _is_error(hearing, said.error):
        return
    if said.sequence_number is not None:
        hearing.counts(said.sequence_number)
    channel = CHANNELS.get(said.type)
    if channel is not None:
        hearing.text(f"tool {said.output_index}" if channel == "tool" else channel, said.delta)
    elif said.type == "response.output_item.added" and said.item is not None and said.item.type == "function_call":
        hearing.text(f"tool {said.output_index}", f"{said.item.name} ")
    if said.response is not None:
        hearing.is_from(said.response.id)
        if said.type in LAST_EVENTS:
            _end_response(hearing, said.response)


def _end_response(hearing: Recorder, response: Response) -> None:
    streamed, summary = hearing.whole(), Recorder()
    _take_output(summary, response)
    for channel in sorted({*streamed, *summary.whole()}):
        if streamed.get(channel, "") != summary.whole().get(channel, ""):
            hearing.flaws.append(f"{channel}: the closing event does not say what was streamed")
    _is_error(hearing, response.error)
    hearing.finishes(response.status)
    hearing.usage = response.usage
    hearing.ended = True


def take_response(hearing: Recorder, data: bytes) -> None:
    """A whole answer."""
    response = _response.decode(data)
    _take_output(hearing, response)
    hearing.finishes(response.status)
    hearing.usage = response.usage


def _take_output(hearing: Recorder, response: Response) -> None:
    for number, item in enumerate(response.output):
        if item.type == "function_call":
            hearing.text(f"tool {number}", f"{item.name} {item.arguments or ''}")
        for part in item.content or []:
            hearing.text("reasoning" if item.type == "reasoning" else "content", part.text)


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
