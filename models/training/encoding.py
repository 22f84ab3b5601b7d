"""Renders requests with the checkpoint's chat template, exactly as transformers and vLLM do."""

import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.training.tasks.sample import Call, Sample

TURN_END = "<|im_end|>"


def _to_json(value: object, ensure_ascii: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii)


class Renderer:
    def __init__(self, template: Path) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = _to_json
        self._template = environment.from_string(template.read_text())

    def prompt(self, sample: Sample) -> str:
        """The text that a server feeds to the model."""
        return self._template.render(
            messages=list(sample.messages),
            tools=list(sample.tools) or None,
            reasoning_effort=sample.effort,
            add_generation_prompt=True,
        )


def call_text(call: Call) -> str:
    """A tool call in the model's XML."""
    values = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in call.arguments.items())
    return f"<tool_call>\n<function={call.name}>\n{values}</function>\n</tool_call>"


def completion(sample: Sample) -> str:
    """What the model writes after the opened `<think>`, up to and with the end of its turn."""
    lesson = sample.lesson
    body = "\n".join(call_text(call) for call in lesson.calls) if lesson.calls else lesson.answer
    return f"{sample.thought}\n</think>\n{body}{TURN_END}"
