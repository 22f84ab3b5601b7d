"""Tool tasks: call common or made-up tools with the values that a request names, and report their results."""

import json
from random import Random

from models.training.tasks.sample import Message, Task, ToolCall
from models.training.tasks.tool_catalogue import KNOWN_TOOLS, TOPICS, KnownTool, ValueGenerator, choice, integer
from models.training.tasks.vocab import Vocab

Schema = dict[str, object]

ACTIONS = """
get list find open close create delete update check start stop move copy load save count track order cancel rate
""".split()
KEYS = """
id name title city street colour size count price date owner team room code level mode label source target limit
page amount rating country language status kind weight height speed key value tag note author
""".split()
TYPES: dict[str, ValueGenerator] = {
    "string": lambda vocab: vocab.rng.choice((Vocab.noun, Vocab.name, Vocab.city, Vocab.code))(vocab),
    "integer": integer(0, 999),
    "number": lambda vocab: f"{vocab.any_number(0, 99)}.{vocab.any_number(0, 9)}",
    "boolean": choice("true", "false"),
}


def schema(name: str, description: str, types: dict[str, str], rng: Random) -> Schema:
    """A function definition in OpenAI's format. Optional fields vary as they do between clients."""
    has_descriptions = rng.random() < 0.2
    fields: dict[str, Schema] = {}
    for key, json_type in types.items():
        fields[key] = {"type": json_type}
        if has_descriptions:
            fields[key]["description"] = f"The {key}."
    parameters: Schema = {"type": "object", "properties": fields}
    if rng.random() < 0.8:
        parameters["required"] = list(types)
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function: Schema = {"name": name, "description": description, "parameters": parameters}
    if rng.random() < 0.1:
        del function["description"]
    return {"type": "function", "function": function}


def known_schema(tool: KnownTool, rng: Random) -> Schema:
    return schema(tool.name, tool.description, {key: json_type for key, (json_type, _) in tool.parameters.items()}, rng)


def made_up_tool(vocab: Vocab) -> tuple[str, dict[str, str]]:
    """A function name, and JSON types by parameter name."""
    rng = vocab.rng
    noun = vocab.noun()
    action = rng.choice(ACTIONS) if rng.random() < 0.7 else vocab.made_up()
    name = rng.choice((f"{action}_{noun}", f"{action}_{noun}", f"{action}{noun.capitalize()}", noun))
    keys = list(
        dict.fromkeys(rng.choice(KEYS) if rng.random() < 0.8 else vocab.made_up() for _ in range(rng.randint(1, 3)))
    )
    return name, {key: rng.choice(("string", "string", "integer", "number", "boolean")) for key in keys}


def made_up_schema(vocab: Vocab) -> Schema:
    name, types = made_up_tool(vocab)
    return schema(name, f"{vocab.noun().capitalize()} {vocab.noun()}.", types, vocab.rng)


def distractors(vocab: Vocab, count: int, excluded_topics: set[str]) -> list[Schema]:
    """Tools that the request does not need. Known ones have different topics, none of them excluded."""
    chosen: list[Schema] = []
    while len(chosen) < count:
        if vocab.rng.random() < 0.6:
            tool = vocab.rng.choice(KNOWN_TOOLS)
            if tool.topic not in excluded_topics:
                excluded_topics = excluded_topics | {tool.topic}
                chosen.append(known_schema(tool, vocab.rng))
        else:
            chosen.append(made_up_schema(vocab))
    return chosen


def _known_request(vocab: Vocab) -> tuple[str, ToolCall, KnownTool]:
    tool = vocab.rng.choice(KNOWN_TOOLS)
    values = {key: generate(vocab) for key, (_, generate) in tool.parameters.items()}
    return vocab.rng.choice(tool.requests).format(**values), ToolCall(tool.name, values), tool


def _made_up_request(vocab: Vocab) -> tuple[str, ToolCall, Schema]:
    rng = vocab.rng
    name, types = made_up_tool(vocab)
    values = {key: TYPES[json_type](vocab) for key, json_type in types.items()}
    listed = [f"{key} {value}" for key, value in values.items()]
    equal = [f"{key} = {value}" for key, value in values.items()]
    request = rng.choice(
        (
            f"Call {name} with {' and '.join(listed)}.",
            f"Use {name}: {', '.join(equal)}.",
            f"Please use the tool {name} with {', '.join(equal)}.",
            f"Run {name} for {', '.join(listed)}.",
            f"{name}, {', '.join(listed)}, please.",
        )
    )
    return request, ToolCall(name, values), schema(name, f"{vocab.noun().capitalize()} {vocab.noun()}.", types, rng)


def thoughts_of(calls: tuple[ToolCall, ...]) -> tuple[str, str, str]:
    """The number of calls, then the topic and the name of each: one decision per token.

    Names are quoted, because after a word and a blank some have other tokens than in the schema and in the call.
    """
    reasons = (f"For {TOPICS[call.name]}" if call.name in TOPICS else "As named" for call in calls)
    named = " ".join(f'{reason}: "{call.name}".' for reason, call in zip(reasons, calls, strict=True))
    number = "One call." if len(calls) == 1 else "Two calls."
    return f"{number} {named}", "Its values come from the request.", "Nothing is missing, and nothing is made up."


def call_task(vocab: Vocab) -> Task:
    """A request that needs one or two calls of the offered tools."""
    rng = vocab.rng
    draw = rng.random()
    if draw < 0.50:
        request, call, tool = _known_request(vocab)
        offered, topics = [known_schema(tool, rng)], {tool.topic}
        calls: tuple[ToolCall, ...] = (call,)
    elif draw < 0.75:
        request, call, definition = _made_up_request(vocab)
        calls, offered, topics = (call,), [definition], set[str]()
    else:
        request, calls, offered, topics = _double_request(vocab)
    offered += distractors(vocab, rng.choice((0, 0, 1, 1, 2)), topics)
    rng.shuffle(offered)
    return Task("tool", request, thoughts_of(calls), calls=calls, tools=tuple(offered))


def _double_request(vocab: Vocab) -> tuple[str, tuple[ToolCall, ...], list[Schema], set[str]]:
    """Request, calls, offered tools and topics: one tool called twice, or two tools once each."""
    rng = vocab.rng
    if rng.random() < 0.5:
        name, description, topic = rng.choice(
            (
                ("get_weather", "Get the weather in a city.", "weather"),
                ("get_time", "Get the local time in a city.", "time"),
            )
        )
        one, two = vocab.city(), vocab.city()
        request = rng.choice(
            (
                f"What is the {topic} in {one} and in {two}?",
                f"Tell me the {topic} in {one} and {two}.",
                f"Compare the {topic} in {one} with the {topic} in {two}.",
                f"I need the {topic} for {one} and also for {two}.",
            )
        )
        return (
            request,
            (ToolCall(name, {"city": one}), ToolCall(name, {"city": two})),
            [schema(name, description, {"city": "string"}, rng)],
            {topic},
        )
    first_request, first, tool = _known_request(vocab)
    while True:
        second_request, second, other = _known_request(vocab)
        if other.topic != tool.topic:
            break
    joined = f"{first_request} {rng.choice(('Then:', 'And also:', 'Then', 'After that:'))} {second_request}"
    return joined, (first, second), [known_schema(tool, rng), known_schema(other, rng)], {tool.topic, other.topic}


def _result(vocab: Vocab) -> str:
    """A tool's result: weather, a JSON object or a sentence."""
    rng = vocab.rng
    draw = rng.random()
    if draw < 0.45:
        return f"{rng.randint(-20, 45)} C, {rng.choice(('sunny', 'light rain', 'cloudy', 'windy', 'snow', 'fog'))}"
    if draw < 0.6:
        keys = rng.sample(KEYS, rng.randint(1, 2))
        json_types = {key: rng.choice(list(TYPES)) for key in keys}
        return json.dumps({key: _typed(json_type, TYPES[json_type](vocab)) for key, json_type in json_types.items()})
    return vocab.sentence(1, 6) if draw < 0.8 else vocab.plain_sentence()


def _typed(json_type: str, value: str) -> object:
    return value if json_type == "string" else json.loads(value)


def result_task(vocab: Vocab) -> Task:
    """Report the results of calls that were made already."""
    rng = vocab.rng
    pending = call_task(vocab)
    results = [_result(vocab) for _ in pending.calls]
    ordinals = ("The tool",) if len(results) == 1 else ("The first tool", "The second tool")
    lines = [f"{which} says:\n{result}" for which, result in zip(ordinals, results, strict=True)]
    turns: list[Message] = [
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": " ".join(pending.thoughts[: rng.randint(1, 3)]),
            "tool_calls": [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in pending.calls
            ],
        }
    ]
    if rng.random() < 0.3:
        turns[0].pop("reasoning_content")
    turns += [{"role": "tool", "content": result} for result in results]
    thoughts = ("I have the result.", "I tell the user what it says.", "I take it as it is and call nothing more.")
    return Task("result", pending.request, thoughts, answer="\n".join(lines), tools=pending.tools, after=tuple(turns))
