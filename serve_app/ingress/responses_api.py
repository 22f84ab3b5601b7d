"""Changes to vLLM's `/v1/responses` where it differs from OpenAI's: cut answers and thinking budgets.

* An answer that reached `max_output_tokens` ends with `response.incomplete` (vLLM: `response.completed`), and the item
  that was cut has that status, streamed or not.
* The input of a free-form tool's call that has no end is what its deltas said (vLLM: the JSON around it, once more).
* Events that were sent by repetition (`ingress/repeated_chunks.py`) are counted.
* `thinking_token_budget` works as on vLLM's other APIs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import ModuleType
from typing import Any, Final

from openai.types.responses import ResponseIncompleteEvent
from vllm.entrypoints.openai.responses.protocol import (
    ResponseCompletedEvent,
    ResponsesResponse,
)
from vllm.entrypoints.openai.responses.utils import decode_custom_tool_input_prefix
from vllm.sampling_params import validate_thinking_token_budget

from serve_app.ingress.grammars import structured_outputs
from serve_app.ingress.repeated_chunks import EVENT_NUMBERS, EventNumbers
from serve_app.vllm_patches import vllm_api
from serve_app.vllm_patches.patching import Function, replace

ITEM_DONE: Final = "response.output_item.done"

Events = AsyncGenerator[Any, None]
"""vLLM's (OpenAI's) event objects, as its router turns them into lines."""


class IncompleteEvent(ResponseIncompleteEvent):
    """The end of a stream that was cut."""

    response: ResponsesResponse  # vLLM's response, as in vLLM's own events


def use() -> None:
    """Apply the changes in this process. Calling it again changes nothing."""
    replace(vllm_api.WHOLE_RESPONSE, mark_cut_item)
    replace(vllm_api.RESPONSE_STREAM, end_as_it_ended)
    replace(vllm_api.RESPONSE_PARAMS, take_thinking_budget)
    replace(vllm_api.CUSTOM_INPUT, decode_without_end)
    replace(vllm_api.STREAMED_CUSTOM_INPUT, decode_without_end)


def take_thinking_budget(original: Function, _: ModuleType) -> Function:
    """The parameter that vLLM's chat and completion requests have, and its Responses request lacks."""

    def to_sampling_params(
        self: Any, default_max_tokens: int, default_sampling_params: dict[str, Any] | None = None
    ) -> Any:
        structured_outputs.note_source(self)
        params = original(self, default_max_tokens, default_sampling_params)
        budget = (self.model_extra or {}).get("thinking_token_budget")
        params.thinking_token_budget = validate_thinking_token_budget(budget)
        return params

    return to_sampling_params


def mark_cut_item(original: Function, _: ModuleType) -> Function:
    """Mark the last item of an incomplete response: it is the one that was cut."""

    async def responses_full_generator(self: Any, *args: Any, **named: Any) -> Any:
        response = await original(self, *args, **named)
        if isinstance(response, ResponsesResponse) and response.status == "incomplete" and response.output:
            # OpenAI's type of a custom tool's call lacks the field, and keeps it: its base allows further ones.
            response.output[-1].status = "incomplete"
        return response

    return responses_full_generator


def decode_without_end(original: Function, _: ModuleType) -> Function:
    """The input in a free-form call's JSON, also where that has no end: vLLM takes that JSON for the input."""

    def decode_custom_tool_input(arguments: str) -> Any:
        decoded = original(arguments)
        return decoded if decoded != arguments else decode_custom_tool_input_prefix(arguments) or arguments

    return decode_custom_tool_input


def end_as_it_ended(original: Function, _: ModuleType) -> Function:
    """End a stream with the events that say whether the answer is complete."""

    async def responses_stream_generator(
        self: Any, request: Any, sampling_params: Any, result_generator: Any, context: Any, *args: Any, **named: Any
    ) -> Events:
        held: Any = None  # an item's end is held back if the item may be the one that was cut
        numbers = EventNumbers()
        EVENT_NUMBERS.set(numbers)
        async for event in original(self, request, sampling_params, result_generator, context, *args, **named):
            if numbers.was_sent(event):
                continue
            if held is not None:
                yield held
                held = None
            if event.type == ITEM_DONE and _is_cut(context):
                held = event
            elif isinstance(event, ResponseCompletedEvent) and event.response.status == "incomplete":
                yield IncompleteEvent(
                    type="response.incomplete", sequence_number=event.sequence_number, response=event.response
                )
            else:
                yield event

    return responses_stream_generator


def _is_cut(context: Any) -> bool:
    output = getattr(context, "last_output", None)
    return bool(output is not None and output.outputs and output.outputs[0].finish_reason == "length")
