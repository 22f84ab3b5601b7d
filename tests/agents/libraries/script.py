"""What the scripted engine says to the client scripts of this folder."""

from __future__ import annotations

from typing import Any

WEATHER_OF_PARIS = {"name": "get_weather", "arguments": {"city": "Paris"}}
WEATHER_OF_OSLO = {"name": "get_weather", "arguments": {"city": "Oslo"}}

SCRIPT: list[dict[str, Any]] = [
    {"when": ["Say hello plainly"], "turns": [{"say": "Hello there."}]},
    {"when": ["Add 17 and 25"], "turns": [{"think": "17 and 25 make 42.", "say": "It is 42."}]},
    {
        "when": ["What is the weather in Paris"],
        "turns": [{"think": "I ask.", "calls": [WEATHER_OF_PARIS]}, {"say": "It is sunny in Paris."}],
    },
    {
        "when": ["Compare Paris and Oslo"],
        "turns": [
            {"think": "Two calls.", "say": "I look.", "calls": [WEATHER_OF_PARIS, WEATHER_OF_OSLO]},
            {"say": "Paris is sunny, Oslo is rainy."},
        ],
    },
    {"when": ["Describe Ada as JSON"], "turns": [{"say": '{"name": "Ada", "age": 36}'}]},
    # Claude Code puts the server's name before a tool's.
    {
        "when": ["Use the tool for the weather of Paris"],
        "turns": [
            {"think": "I ask.", "calls": [{"name": "mcp__here__get_weather", "arguments": {"city": "Paris"}}]},
            {"say": "It is sunny in Paris."},
        ],
    },
    # The tool that a library makes of a type is named by the library.
    {
        "when": ["Describe Ada with a tool", '"name": "(?P<tool>Person|final_result)"'],
        "turns": [{"calls": [{"name": "{{tool}}", "arguments": {"name": "Ada", "age": 36}}]}, {"say": "Done."}],
    },
    {"turns": [{"say": "I was not told what to say to this."}]},
]
