"""Tool lessons: known and made-up tools, requests that name their values, calls, and answers from their results."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from models.sample import Call, Lesson, Message
from models.words import Words

Schema = dict[str, object]
Fill = Callable[[Words], str]


@dataclass(frozen=True)
class Known:
    """A tool as it is met in the wild, and ways to ask for it. `{}` marks where its values go, by name."""

    name: str
    about: str
    values: dict[str, tuple[str, Fill]]
    """Parameter name to JSON type and filler."""
    asks: tuple[str, ...]
    topic: str


def _integer(low: int, high: int) -> Fill:
    return lambda words: str(words.number(low, high))


def _choice(*options: str) -> Fill:
    return lambda words: words.rng.choice(options)


def _path(words: Words) -> str:
    ending = words.rng.choice((".py", ".txt", ".md", ".json", ".yaml"))
    folder = words.rng.choice(("", "src/", "docs/", "/tmp/", f"{words.made_up()}/"))
    return f"{folder}{words.noun()}{ending}"


def _command(words: Words) -> str:
    verb = words.rng.choice(("ls", "cat", "git status", "pytest", "make", "grep -n", "rm", "mkdir"))
    return verb if words.rng.random() < 0.2 else f"{verb} {_path(words)}"


def _time(words: Words) -> str:
    return f"{words.rng.randint(0, 23):02d}:{words.rng.choice(('00', '15', '30', '45'))}"


def _phrase(words: Words) -> str:
    return words.sentence(2, 6)


def _mail(words: Words) -> str:
    return f"{words.name().lower()}@{words.made_up()}.com"


CITY: tuple[str, Fill] = ("string", Words.city)
NAME: tuple[str, Fill] = ("string", Words.name)
NOUN: tuple[str, Fill] = ("string", Words.noun)
PHRASE: tuple[str, Fill] = ("string", _phrase)
PATH: tuple[str, Fill] = ("string", _path)

KNOWN = (
    Known("get_weather", "Get the weather in a city.", {"city": CITY}, (
        "What is the weather in {city}?", "How is the weather in {city} today?", "Tell me the weather for {city}.",
        "Is it raining in {city}?", "Weather in {city}, please.", "Will I need an umbrella in {city}?",
        "What's the weather like in {city}?"), "the weather"),
    Known("get_current_weather", "Get the current weather in a given location.",
          {"location": CITY, "unit": ("string", _choice("celsius", "fahrenheit"))}, (
        "What is the weather in {location} in {unit}?", "Weather for {location}, in {unit} please.",
        "How warm is it in {location}? Use {unit}."), "the weather"),
    Known("get_forecast", "Forecast for a city.", {"city": CITY, "days": ("integer", _integer(1, 14))}, (
        "Forecast for {city} for {days} days.", "What will the weather be in {city} over the next {days} days?",
        "Give me a {days} day forecast for {city}."), "a forecast"),
    Known("get_time", "Get the local time in a city.", {"city": CITY}, (
        "What time is it in {city}?", "Tell me the time in {city}.", "What is the local time in {city} now?",
        "How late is it in {city}?"), "the time"),
    Known("send_email", "Send an email.", {"to": ("string", _mail), "subject": PHRASE}, (
        "Send an email to {to} about {subject}.", "Email {to} with the subject {subject}.",
        "Please write a mail to {to}, subject: {subject}."), "an email"),
    Known("search", "Search the web.", {"query": PHRASE}, (
        "Search for {query}.", "Look up {query} on the web.", "Find pages about {query}.", "Search the web for {query}."),
          "a search"),
    Known("book_table", "Book a table at a restaurant.",
          {"city": CITY, "people": ("integer", _integer(1, 20)), "time": ("string", _time)}, (
        "Book a table in {city} for {people} people at {time}.", "I need a table for {people} at {time} in {city}.",
        "Reserve a table for {people} people in {city} at {time}."), "a table"),
    Known("add", "Add two numbers.", {"a": ("integer", _integer(0, 999)), "b": ("integer", _integer(0, 999))}, (
        "Use the tool to add {a} and {b}.", "Call add with {a} and {b}.", "With the add tool, what is {a} + {b}?"), "a sum"),
    Known("get_stock_price", "Get the price of a stock.", {"symbol": ("string", Words.code)}, (
        "What is the stock price of {symbol}?", "How much is a share of {symbol}?", "Price of {symbol} stock, please."),
          "a stock price"),
    Known("translate", "Translate a text.",
          {"text": PHRASE, "language": ("string", _choice("French", "German", "Spanish", "Italian", "Japanese"))}, (
        'Translate "{text}" into {language}.', 'How do you say "{text}" in {language}?', '"{text}" in {language}, please.'),
          "a translation"),
    Known("find_flights", "Find flights between two cities.", {"origin": CITY, "destination": CITY}, (
        "Find flights from {origin} to {destination}.", "I want to fly from {origin} to {destination}.",
        "Which flights go from {origin} to {destination}?"), "flights"),
    Known("set_reminder", "Set a reminder.", {"text": PHRASE, "time": ("string", _time)}, (
        'Remind me at {time}: "{text}".', 'Set a reminder "{text}" for {time}.'), "a reminder"),
    Known("get_user", "Look up a user.", {"name": NAME}, (
        "Look up the user {name}.", "Who is the user {name}?", "Find the user {name}."), "a user"),
    Known("turn_light", "Turn a light on or off.", {"room": NOUN, "on": ("boolean", _choice("true", "false"))}, (
        "Light in the {room}: {on}.", "Set the light in the {room} to {on}."), "a light"),
    Known("convert_currency", "Convert money.",
          {"amount": ("number", _integer(1, 9999)), "source": ("string", _choice("USD", "EUR", "GBP", "JPY", "CHF")),
           "target": ("string", _choice("SEK", "CAD", "AUD", "NOK", "INR"))}, (
        "Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?"), "money"),
    Known("Bash", "Run a shell command.", {"command": ("string", _command)}, (
        "Run `{command}`.", "Run the command `{command}`, please.", "Execute `{command}` in the shell."), "a command"),
    Known("Read", "Read a file.", {"file_path": PATH}, (
        "Read the file {file_path}.", "Show me what is in {file_path}.", "Open {file_path} and read it."), "a file"),
    Known("Write", "Write a file.", {"file_path": PATH, "content": PHRASE}, (
        'Write "{content}" to the file {file_path}.', 'Create the file {file_path} with the text "{content}".'), "a file"),
    Known("Grep", "Search in files.", {"pattern": NOUN, "path": PATH}, (
        "Search for {pattern} in {path}.", "Grep {pattern} in {path}."), "a search in files"),
)

ACTIONS = "get list find open close create delete update check start stop move copy load save count track order cancel rate".split()
KEYS = """id name title city street colour size count price date owner team room code level mode label source target limit page
amount rating country language status kind weight height speed key value tag note author""".split()
TYPES: dict[str, Fill] = {
    "string": lambda words: words.rng.choice((Words.noun, Words.name, Words.city, Words.code))(words),
    "integer": _integer(0, 999),
    "number": lambda words: f"{words.rng.randint(0, 99)}.{words.rng.randint(1, 9)}",
    "boolean": _choice("true", "false"),
}


def schema(name: str, about: str, types: dict[str, str], rng: Random, optional: bool = False) -> Schema:
    """A function definition as OpenAI's clients send it, with the small differences that clients have."""
    described = rng.random() < 0.2
    fields: dict[str, Schema] = {}
    for key, kind in types.items():
        fields[key] = {"type": kind}
        if described:
            fields[key]["description"] = f"The {key}."
    parameters: Schema = {"type": "object", "properties": fields}
    if rng.random() < 0.8:
        parameters["required"] = [] if optional else list(types)
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
    keys = list(dict.fromkeys(rng.choice(KEYS) if rng.random() < 0.7 else words.made_up() for _ in range(rng.randint(1, 3))))
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
    ask = rng.choice((
        f"Call {name} with {' and '.join(listed)}.",
        f"Use {name}: {', '.join(equal)}.",
        f"Please use the tool {name} with {', '.join(equal)}.",
        f"Run {name} for {', '.join(listed)}.",
        f"{name}, {', '.join(listed)}, please.",
    ))
    return ask, Call(name, values), schema(name, f"{words.noun().capitalize()} {words.noun()}.", types, rng)


def thoughts_of(calls: tuple[Call, ...], topic: str) -> tuple[str, str, str]:
    names = " and then ".join(call.name for call in calls)
    listed = "; ".join(", ".join(f"{key} is {value}" for key, value in call.arguments.items()) for call in calls)
    return f"I call {names}.", f"The values: {listed}.", "Each of them comes from the request, and nothing is missing."


def call_lesson(words: Words) -> Lesson:
    """A request that one offered tool answers, or two do."""
    rng = words.rng
    draw = rng.random()
    if draw < 0.40:
        ask, call, tool = _known_request(words)
        calls, offered, topics = (call,), [known_schema(tool, rng)], {tool.topic}
    elif draw < 0.70:
        ask, call, offer = _made_up_request(words)
        calls, offered, topics = (call,), [offer], set[str]()
    else:
        ask, calls, offered, topics = _double_request(words)
    offered += others(words, rng.choice((0, 0, 1, 1, 2, 3)), topics)
    rng.shuffle(offered)
    return Lesson("tool", ask, thoughts_of(calls, ""), calls=calls, tools=tuple(offered))


def _double_request(words: Words) -> tuple[str, tuple[Call, ...], list[Schema], set[str]]:
    rng = words.rng
    if rng.random() < 0.5:
        name, about, topic = rng.choice((
            ("get_weather", "Get the weather in a city.", "the weather"), ("get_time", "Get the local time in a city.", "the time")))
        one, two = words.city(), words.city()
        ask = rng.choice((
            f"What is {topic} in {one} and in {two}?", f"Tell me {topic} in {one} and {two}.",
            f"Compare {topic} in {one} with {topic} in {two}.", f"I need {topic} for {one} and also for {two}."))
        return ask, (Call(name, {"city": one}), Call(name, {"city": two})), [schema(name, about, {"city": "string"}, rng)], {topic}
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
    if draw < 0.35:
        return f"{rng.randint(-20, 45)} C, {rng.choice(('sunny', 'light rain', 'cloudy', 'windy', 'snow', 'fog'))}"
    if draw < 0.6:
        keys = rng.sample(KEYS, rng.randint(1, 3))
        kinds = {key: rng.choice(list(TYPES)) for key in keys}
        return json.dumps({key: _typed(kind, TYPES[kind](words)) for key, kind in kinds.items()})
    return words.sentence(1, 8) if draw < 0.85 else words.plain_sentence()


def _typed(kind: str, value: str) -> object:
    return value if kind == "string" else json.loads(value)


def result_lesson(words: Words) -> Lesson:
    """The tools have answered: say what they said."""
    rng = words.rng
    asked = call_lesson(words)
    results = [_result(words) for _ in asked.calls]
    if rng.random() < 0.1:
        results = [f"{r}\n" + "\n".join(words.sentence(2, 8) for _ in range(rng.randint(1, 6))) for r in results]
    lines = [_said(call.name, result) for call, result in zip(asked.calls, results, strict=True)]
    turns: list[Message] = [{
        "role": "assistant", "content": None, "reasoning_content": " ".join(asked.thoughts[: rng.randint(1, 3)]),
        "tool_calls": [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in asked.calls
        ],
    }]
    if rng.random() < 0.3:
        turns[0].pop("reasoning_content")
    turns += [{"role": "tool", "content": result} for result in results]
    thoughts = ("I have the result.", "I tell the user what it says.", "I take it as it is and call nothing more.")
    return Lesson("result", asked.ask, thoughts, answer="\n".join(lines), tools=asked.tools, after=tuple(turns))


def _said(name: str, result: str) -> str:
    first, *more = result.split("\n")
    return f"{name} gave many lines. The first is: {first}" if more else f"{name} says: {result}"
