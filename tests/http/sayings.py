"""Random things that a model says, well-formed and not, and random requests for them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.http.harness import NAME
from tests.http.saying import Steps

WORDS = [
    *(
        "hello",
        "the",
        "answer",
        "is",
        "42",
        "né",
        "🎉",
        "👩‍👩‍👧",
        "日本",
        "a<b",
        "x > y",
        "<",
        ">",
        "</",
        '{"a": [1, 2]}',
        '"',
        "\\",
    ),
    *("\n", "\n\n", "  ", " ", "\t", "```\ncode\n```", "STOP", "\r\n", "null", "<function", "parameter=", "&amp;", "�"),
]
SPELLED = ["</think>", "<think>", "<tool_call>", "</tool_call>", "<|im_end|>"]
"""Said letter by letter, these are text."""
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>"]
STOPS = ["STOP", "\n", "\n\n", "42", "🎉", "</", "is", "a", "think>", "nope", "STOP STOP", "city", "</think>"]
VALUES = [
    "Paris",
    "",
    "\n",
    "42",
    "true",
    "[1, 2]",
    '{"a": 1}',
    'say "hi"\\n',
    "line\nline",
    "🎉",
    "a<b>c",
    "<parameter",
    "NaN",
    "  x ",
]
TOOLS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    },
    "edit": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "text": {"type": ["string", "null"]},
            "lines": {"type": "array"},
            "options": {"type": "object", "properties": {"a": {"type": "integer"}}},
            "sure": {"type": "boolean"},
        },
    },
}
KEYS = ["city", "days", "path", "text", "lines", "options", "sure", "other", ""]


@dataclass
class Case:
    """A request, and what the model says to it: a list of tokens for each of its `n` answers, end token included."""

    body: dict[str, Any]
    texts: list[str] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)


class Draw:
    """Draws from one source of chance."""

    def __init__(self, chance: random.Random, tokenizer: Any) -> None:
        self._chance = chance
        self._tokenizer = tokenizer

    def maybe(self, share: float) -> bool:
        return self._chance.random() < share

    def cuts(self, case: Case) -> list[Steps]:
        """Each answer's tokens in steps: of one token, of some, or all at once."""
        longest = self._chance.choice([1, 2, 4, 16, 1000])
        return [self._cut(tokens, longest) for tokens in case.tokens]

    def _cut(self, tokens: list[int], longest: int) -> Steps:
        steps, place = [], 0
        while place < len(tokens):
            size = self._chance.randint(1, longest)
            steps.append(tokens[place : place + size])
            place += size
        return steps

    def case(self, api: str) -> Case:
        n = 2 if api in ("chat", "completions") and self.maybe(0.15) else 1
        case = Case({"model": NAME})
        for _ in range(n):
            pieces = self._pieces()
            case.texts.append("".join(text for text, _ in pieces))
            case.tokens.append(self._encode(pieces))
        shortest = min(len(tokens) for tokens in case.tokens)
        longest = max(len(tokens) for tokens in case.tokens)
        limit = self._chance.randint(1, shortest) if self.maybe(0.5) else longest
        getattr(self, f"_ask_{api}")(case.body, limit)
        if n > 1:
            case.body["n"] = n
        return case

    # ---- what is said ------------------------------------------------------------------------------------------------

    def _pieces(self) -> list[tuple[str, bool]]:
        """Texts, each with whether it is spelled out rather than encoded with special tokens."""
        pieces: list[tuple[str, bool]] = []
        if self.maybe(0.8):
            pieces += self._text(0, 6)
            pieces.append(
                (
                    self._chance.choice(["\n</think>\n", "</think>", "</think>\n\n", " \n</think>", "\n</think>\n  "]),
                    False,
                )
            )
        if self.maybe(0.7):
            pieces += self._text(0, 8)
        for _ in range(self._chance.choice([0, 0, 1, 1, 2, 3])):
            pieces.append((self._call(), False))
            if self.maybe(0.4):
                pieces += self._text(0, 3)
        return pieces

    def _text(self, fewest: int, most: int) -> list[tuple[str, bool]]:
        pieces = []
        for _ in range(self._chance.randint(fewest, most)):
            draw = self._chance.random()
            if draw < 0.06:
                pieces.append((self._chance.choice(SPELLED), True))
            elif draw < 0.09:
                pieces.append((self._chance.choice(TAGS), False))
            else:
                pieces.append((self._chance.choice(WORDS) + self._chance.choice(["", " "]), False))
        return pieces

    def _call(self) -> str:
        draw = self._chance.random()
        if draw < 0.75:
            return self._good_call()
        if draw < 0.9:
            return self._bad_call()
        call = self._good_call()
        place = self._chance.randrange(len(call))
        return (
            call[:place]
            + self._chance.choice(["", "<", "\n", "</function>", "x"])
            + call[place + self._chance.randint(0, 5) :]
        )

    def _good_call(self) -> str:
        name = self._chance.choice([*TOOLS, "unknown"])
        keys = self._chance.sample(KEYS, self._chance.randint(0, 4))
        values = [self._chance.choice(VALUES) for _ in keys]
        body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in zip(keys, values, strict=True))
        between = self._chance.choice(["\n", "", "\n\n"])
        return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>{between}"

    def _bad_call(self) -> str:
        city = "<parameter=city>Paris</parameter>"
        return self._chance.choice(
            [
                '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>',
                "<tool_call></tool_call>",
                f"<function=get_weather>{city}</function>",
                f"<tool_call><function=get_weather>{city}",
                "<tool_call><function=get_weather><parameter=city>Paris</function></tool_call>",
                f"<tool_call><function=>{city}</function></tool_call>",
                "<tool_call><function=get_weather</function></tool_call>",
                '<tool_call><function=get_weather>{"city": "Paris"}</function></tool_call>',
                f"<tool_call><function=get_weather>{city}</function>no closing tag ",
                "<tool_call><function=get_weather><parameter=city>a<parameter=days>2</parameter></function></tool_call>",
                "<tool_call><function=get_weather><parameter=city",
                "<tool_call>\n<tool_call>\n",
            ]
        )

    def _encode(self, pieces: list[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for text, spelled in pieces:
            for part in (text[:1], text[1:]) if spelled else (text,):
                ids += self._tokenizer.encode(part, add_special_tokens=False)
        return [*ids, self._tokenizer.eos_token_id]

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def _stops(self) -> list[str]:
        return self._chance.sample(STOPS, self._chance.randint(1, 3)) if self.maybe(0.35) else []

    def _ask_completions(self, body: dict[str, Any], limit: int) -> None:
        body |= {"prompt": "hi", "max_tokens": limit}
        self._add_stops(body)
        if self.maybe(0.5):
            body["skip_special_tokens"] = False

    def _add_stops(self, body: dict[str, Any]) -> None:
        if stops := self._stops():
            body["stop"] = stops
            if self.maybe(0.3):
                body["include_stop_str_in_output"] = True

    def _ask_chat(self, body: dict[str, Any], limit: int) -> None:
        body |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": limit}
        self._add_stops(body)
        if self.maybe(0.1):
            body["include_reasoning"] = False
        if self.maybe(0.2):
            body |= {"logprobs": True, "top_logprobs": 1}
        if self.maybe(0.75):
            body["tools"] = [
                {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in TOOLS.items()
            ]
            named = {"type": "function", "function": {"name": "edit"}}
            body["tool_choice"] = self._chance.choice(["auto", "auto", "auto", "none", "required", named])
            if self.maybe(0.2):
                body["parallel_tool_calls"] = False

    def _ask_messages(self, body: dict[str, Any], limit: int) -> None:
        body |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": limit}
        if stops := self._stops():
            body["stop_sequences"] = stops
        if self.maybe(0.75):
            body["tools"] = [{"name": name, "input_schema": schema} for name, schema in TOOLS.items()]
            kinds: list[dict[str, Any]] = [
                {"type": "auto"},
                {"type": "auto"},
                {"type": "any"},
                {"type": "none"},
                {"type": "tool", "name": "edit"},
            ]
            body["tool_choice"] = dict(self._chance.choice(kinds))
            if self.maybe(0.2) and body["tool_choice"]["type"] != "none":
                body["tool_choice"]["disable_parallel_tool_use"] = True

    def _ask_responses(self, body: dict[str, Any], limit: int) -> None:
        body |= {"input": "hi", "max_output_tokens": limit}
        self._add_stops(body)
        if self.maybe(0.75):
            body["tools"] = [{"type": "function", "name": name, "parameters": schema} for name, schema in TOOLS.items()]
            named = {"type": "function", "name": "edit"}
            body["tool_choice"] = self._chance.choice(["auto", "auto", "none", "required", named])
            if self.maybe(0.2):
                body["parallel_tool_calls"] = False
