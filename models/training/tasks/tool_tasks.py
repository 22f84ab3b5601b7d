"""Tool lessons: known and made-up tools, requests that name their values, calls, and answers from their results."""

import json
from random import Random

from models.training.tasks.sample import Call, Lesson, Message
from models.training.tasks.tool_catalogue import KNOWN, TOPICS, Fill, Known, choice, integer
from models.training.tasks.vocab import Words

Schema = dict[str, object]

ACTIONS = """
get list find open close create delete update check start stop move copy load save count track order cancel rate
""".split()
KEYS = """
id name title city street colour size count price date owner team room code level mode label source target limit
page amount rating country language status kind weight height speed key value tag note author
""".split()
TYPES: dict[str, Fill] = {
    "string": lambda words: words.rng.choice((Words.noun, Words.name, Words.city, Words.code))(words),
    "integer": integer(0, 999),
    "number": lambda words: f"{words.any_number(0, 99)}.{words.any_number(0, 9)}",
    "boolean": choice("true", "false"),
}


def schema(name: str, about: str, types: dict[str, str], rng: Random) -> Schema:
    """A function definition as OpenAI's clients send it, with the small differences that clients have."""
    described = rng.random() < 0.2
    fields: dict[str, Schema] = {}
    for key, kind in types.items():
        fields[key] = {"type": kind}
        if described:
            fields[key]["description"] = f"The {key}."
    parameters: Schema = {"type": "object", "properties": fields}
    if rng.random() < 0.8:
        parameters["required"] = list(types)
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function: Schema = {"name": name, "description": about, "parameters": parameters}
    if rng.random() < 0.1:
        del function["description"]
    return {"type": "function", "function": function}


def known_schema(tool: Known, rng: Random) -> Schema:
    return schema(tool.name, tool.about, {key: kind for key, (kind, _) in tool.values.items()}, rng)


def made_up_tool(words: Words) -> tuple[str, dict[str, str]]:
    """A name and typed parameters that no list holds."""
    rng = words.rng
    noun = words.noun()
    action = rng.choice(ACTIONS) if rng.random() < 0.7 else words.made_up()
    name = rng.choice((f"{action}_{noun}", f"{action}_{noun}", f"{action}{noun.capitalize()}", noun))
    keys = list(
        dict.fromkeys(rng.choice(KEYS) if rng.random() < 0.8 else words.made_up() for _ in range(rng.randint(1, 3)))
    )
    return name, {key: rng.choice(("string", "string", "integer", "number", "boolean")) for key in keys}


def made_up_schema(words: Words) -> Schema:
    name, types = made_up_tool(words)
    return schema(name, f"{words.noun().capitalize()} {words.noun()}.", types, words.rng)


def others(words: Words, count: int, without: set[str]) -> list[Schema]:
    """Tools that are offered but not asked for; none on the same topic as those that are."""
    chosen: list[Schema] = []
    while len(chosen) < count:
        if words.rng.random() < 0.6:
            tool = words.rng.choice(KNOWN)
            if tool.topic not in without:
                without = without | {tool.topic}
                chosen.append(known_schema(tool, words.rng))
        else:
            chosen.append(made_up_schema(words))
    return chosen


def _known_request(words: Words) -> tuple[str, Call, Known]:
    tool = words.rng.choice(KNOWN)
    values = {key: fill(words) for key, (_, fill) in tool.values.items()}
    return words.rng.choice(tool.asks).format(**values), Call(tool.name, values), tool


def _made_up_request(words: Words) -> tuple[str, Call, Schema]:
    rng = words.rng
    name, types = made_up_tool(words)
    values = {key: TYPES[kind](words) for key, kind in types.items()}
    listed = [f"{key} {value}" for key, value in values.items()]
    equal = [f"{key} = {value}" for key, value in values.items()]
    ask = rng.choice(
        (
            f"Call {name} with {' and '.join(listed)}.",
            f"Use {name}: {', '.join(equal)}.",
            f"Please use the tool {name} with {', '.join(equal)}.",
            f"Run {name} for {', '.join(listed)}.",
            f"{name}, {', '.join(listed)}, please.",
        )
    )
    return ask, Call(name, values), schema(name, f"{words.noun().capitalize()} {words.noun()}.", types, rng)


def thoughts_of(calls: tuple[Call, ...]) -> tuple[str, str, str]:
    """How many calls, and for each what it is for before which tool it is: one decision at a time.

    Names stand in quotes: behind another word, some would be other tokens than where they stand offered and are called.
    """
    why = (f"For {TOPICS[call.name]}" if call.name in TOPICS else "As named" for call in calls)
    used = " ".join(f'{reason}: "{call.name}".' for reason, call in zip(why, calls, strict=True))
    number = "One call." if len(calls) == 1 else "Two calls."
    return f"{number} {used}", "Its values come from the request.", "Nothing is missing, and nothing is made up."


def call_lesson(words: Words) -> Lesson:
    """A request that one offered tool answers, or two do."""
    rng = words.rng
    draw = rng.random()
    if draw < 0.50:
        ask, call, tool = _known_request(words)
        offered, topics = [known_schema(tool, rng)], {tool.topic}
        calls: tuple[Call, ...] = (call,)
    elif draw < 0.75:
        ask, call, offer = _made_up_request(words)
        calls, offered, topics = (call,), [offer], set[str]()
    else:
        ask, calls, offered, topics = _double_request(words)
    offered += others(words, rng.choice((0, 0, 1, 1, 2)), topics)
    rng.shuffle(offered)
    return Lesson("tool", ask, thoughts_of(calls), calls=calls, tools=tuple(offered))


def _double_request(words: Words) -> tuple[str, tuple[Call, ...], list[Schema], set[str]]:
    rng = words.rng
    if rng.random() < 0.5:
        name, about, topic = rng.choice(
            (
                ("get_weather", "Get the weather in a city.", "weather"),
                ("get_time", "Get the local time in a city.", "time"),
            )
        )
        one, two = words.city(), words.city()
        ask = rng.choice(
            (
                f"What is the {topic} in {one} and in {two}?",
                f"Tell me the {topic} in {one} and {two}.",
                f"Compare the {topic} in {one} with the {topic} in {two}.",
                f"I need the {topic} for {one} and also for {two}.",
            )
        )
        return (
            ask,
            (Call(name, {"city": one}), Call(name, {"city": two})),
            [schema(name, about, {"city": "string"}, rng)],
            {topic},
        )
    first_ask, first, tool = _known_request(words)
    while True:
        second_ask, second, other = _known_request(words)
        if other.topic != tool.topic:
            break
    joined = f"{first_ask} {rng.choice(('Then:', 'And also:', 'Then', 'After that:'))} {second_ask}"
    return joined, (first, second), [known_schema(tool, rng), known_schema(other, rng)], {tool.topic, other.topic}


def _result(words: Words) -> str:
    rng = words.rng
    draw = rng.random()
    if draw < 0.45:
        return f"{rng.randint(-20, 45)} C, {rng.choice(('sunny', 'light rain', 'cloudy', 'windy', 'snow', 'fog'))}"
    if draw < 0.6:
        keys = rng.sample(KEYS, rng.randint(1, 2))
        kinds = {key: rng.choice(list(TYPES)) for key in keys}
        return json.dumps({key: _typed(kind, TYPES[kind](words)) for key, kind in kinds.items()})
    return words.sentence(1, 6) if draw < 0.8 else words.plain_sentence()


def _typed(kind: str, value: str) -> object:
    return value if kind == "string" else json.loads(value)


def result_lesson(words: Words) -> Lesson:
    """The tools have answered: say what they said."""
    rng = words.rng
    asked = call_lesson(words)
    results = [_result(words) for _ in asked.calls]
    ordinals = ("The tool",) if len(results) == 1 else ("The first tool", "The second tool")
    lines = [f"{which} says:\n{result}" for which, result in zip(ordinals, results, strict=True)]
    turns: list[Message] = [
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": " ".join(asked.thoughts[: rng.randint(1, 3)]),
            "tool_calls": [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in asked.calls
            ],
        }
    ]
    if rng.random() < 0.3:
        turns[0].pop("reasoning_content")
    turns += [{"role": "tool", "content": result} for result in results]
    thoughts = ("I have the result.", "I tell the user what it says.", "I take it as it is and call nothing more.")
    return Lesson("result", asked.ask, thoughts, answer="\n".join(lines), tools=asked.tools, after=tuple(turns))
