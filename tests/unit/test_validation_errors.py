"""Pydantic's errors as one sentence with the field's path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from typing_extensions import TypedDict

from serve_app.ingress.validation_errors import Problem, describe


class Text(TypedDict):
    type: Literal["text"]
    text: str


class Image(TypedDict):
    type: Literal["image"]
    url: str


class User(TypedDict):
    role: Literal["user"]
    content: str | list[Text | Image]


class Tool(TypedDict):
    role: Literal["tool"]
    content: str
    call_id: str


class Call(TypedDict):
    name: str


class Message(BaseModel):
    calls: Iterable[Call]


class On(BaseModel):
    type: Literal["on"]
    budget: int


class Off(BaseModel):
    type: Literal["off"]


class Body(BaseModel):
    messages: list[User | Tool]
    n: Annotated[int, Field(ge=1)] = 1
    effort: Literal["low", "high"] | None = None
    thinking: Annotated[On | Off, Field(discriminator="type")] | None = None

    @model_validator(mode="after")
    def _own_rule(self) -> Body:
        if self.n > 100:
            raise ValueError("n must be at most 100 here")
        return self


def said(body: Any) -> Problem:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(body)
    return describe(caught.value.errors(), body)


U = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({}, "`messages` is required.", "messages"),
        ({"messages": "hi"}, "`messages` must be an array.", "messages"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "`messages.0.content` must be a string or an array.",
            "messages.0.content",
        ),
        (
            {"messages": [U, {"role": "tool", "content": "x"}]},
            "`messages.1.call_id` is required.",
            "messages.1.call_id",
        ),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            '`messages.0.role` must be one of "user", "tool".',
            "messages.0.role",
        ),
        ({"messages": [{"content": "x"}]}, "`messages.0.role` is required.", "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]},
            "`messages.0.content.0.url` is required.",
            "messages.0.content.0.url",
        ),
        ({"messages": [U], "n": 0}, "`n` must be at least 1.", "n"),
        ({"messages": [U], "n": "x"}, "`n` must be an integer.", "n"),
        ({"messages": [U], "n": 500}, "n must be at most 100 here", None),
        ({"messages": [U], "effort": "max"}, '`effort` must be one of "low", "high".', "effort"),
        ({"messages": [U], "thinking": {}}, "`thinking.type` is required.", "thinking.type"),
        ({"messages": [U], "thinking": {"type": "x"}}, '`thinking` must be one of "on", "off".', "thinking"),
        ({"messages": [U], "thinking": {"type": "on"}}, "`thinking.budget` is required.", "thinking.budget"),
        ([], "The request body must be an object.", None),
    ],
)
def test_one_sentence_names_the_field_and_what_it_must_be(body: Any, message: str, param: str | None) -> None:
    assert said(body) == Problem(message, param)


def test_without_the_request_the_paths_are_told_from_the_type_names() -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate({"messages": [{"role": "user", "content": 5}]})
    assert describe(caught.value.errors()).param == "messages.0.content"


def test_an_error_in_a_list_that_is_read_lazily_is_found_in_the_request() -> None:
    body = {"messages": [{"calls": [{"name": "a"}, {"name": 5}]}]}
    message = TypeAdapter(Message).validate_python(body["messages"][0])
    with pytest.raises(ValidationError) as caught:
        list(message.calls)
    assert describe(caught.value.errors(), body) == Problem(
        "`messages.0.calls.1.name` must be a string.", "messages.0.calls.1.name"
    )


def test_a_path_ends_where_the_clients_own_words_begin() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, int]).validate_python({"a\n<b>": "x"})
    assert describe(caught.value.errors(), {"a\n<b>": "x"}).param is None
