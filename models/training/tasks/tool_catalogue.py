"""Tools as they are met in the wild, with ways to ask for each. Data, and the fillers of its slots."""

from collections.abc import Callable
from dataclasses import dataclass

from models.training.tasks.vocab import Words

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
    """One word, which is one token in the thoughts."""


def integer(low: int, high: int) -> Fill:
    return lambda words: str(words.number(low, high))


def choice(*options: str) -> Fill:
    return lambda words: words.rng.choice(options)


def _path(words: Words) -> str:
    ending = words.rng.choice((".py", ".txt", ".md", ".json", ".yaml"))
    folder = words.rng.choice(("", "src/", "docs/", "/tmp/", f"{words.made_up()}/"))  # noqa: S108  # text, not a path
    return f"{folder}{words.noun()}{ending}"


def _command(words: Words) -> str:
    """Of any words half of the time: a few known commands would be guessed, and not read."""
    known = ("ls", "cat", "git status", "pytest", "make", "grep -n", "rm", "mkdir")
    verb = words.rng.choice((words.rng.choice(known), words.noun()))
    return verb if words.rng.random() < 0.2 else f"{verb} {_path(words)}"


def _time(words: Words) -> str:
    return f"{words.rng.randint(0, 23):02d}:{words.rng.choice(('00', '15', '30', '45'))}"


def _currency(*known: str) -> Fill:
    """One of the known ones, or any three letters, for the same reason."""
    return lambda words: words.rng.choice((words.rng.choice(known), "".join(words.rng.choices(words.capitals, k=3))))


def _phrase(words: Words) -> str:
    return words.sentence(1, 4)


def _mail(words: Words) -> str:
    return f"{words.name().lower()}@{words.made_up()}.com"


CITY: tuple[str, Fill] = ("string", Words.city)
NAME: tuple[str, Fill] = ("string", Words.name)
NOUN: tuple[str, Fill] = ("string", Words.noun)
PHRASE: tuple[str, Fill] = ("string", _phrase)
PATH: tuple[str, Fill] = ("string", _path)

KNOWN = (
    Known(
        "get_weather",
        "Get the weather in a city.",
        {"city": CITY},
        (
            "What is the weather in {city}?",
            "How is the weather in {city} today?",
            "Tell me the weather for {city}.",
            "Is it raining in {city}?",
            "Weather in {city}, please.",
            "Will I need an umbrella in {city}?",
            "What's the weather like in {city}?",
        ),
        "weather",
    ),
    Known(
        "get_current_weather",
        "Get the current weather in a given location.",
        {"location": CITY, "unit": ("string", choice("celsius", "fahrenheit"))},
        (
            "What is the weather in {location} in {unit}?",
            "Weather for {location}, in {unit} please.",
            "How warm is it in {location}? Use {unit}.",
        ),
        "weather",
    ),
    Known(
        "get_forecast",
        "Forecast for a city.",
        {"city": CITY, "days": ("integer", integer(1, 14))},
        (
            "Forecast for {city} for {days} days.",
            "What will the weather be in {city} over the next {days} days?",
            "Give me a {days} day forecast for {city}.",
        ),
        "forecast",
    ),
    Known(
        "get_time",
        "Get the local time in a city.",
        {"city": CITY},
        (
            "What time is it in {city}?",
            "Tell me the time in {city}.",
            "What is the local time in {city} now?",
            "How late is it in {city}?",
        ),
        "time",
    ),
    Known(
        "send_email",
        "Send an email.",
        {"to": ("string", _mail), "subject": PHRASE},
        (
            "Send an email to {to} about {subject}.",
            "Email {to} with the subject {subject}.",
            "Please write a mail to {to}, subject: {subject}.",
        ),
        "email",
    ),
    Known(
        "search",
        "Search the web.",
        {"query": PHRASE},
        (
            "Search for {query}.",
            "Look up {query} on the web.",
            "Find pages about {query}.",
            "Search the web for {query}.",
        ),
        "search",
    ),
    Known(
        "book_table",
        "Book a table at a restaurant.",
        {"city": CITY, "people": ("integer", integer(1, 20)), "time": ("string", _time)},
        (
            "Book a table in {city} for {people} people at {time}.",
            "I need a table for {people} at {time} in {city}.",
            "Reserve a table for {people} people in {city} at {time}.",
        ),
        "booking",
    ),
    Known(
        "add",
        "Add two numbers.",
        {"a": ("integer", integer(0, 999)), "b": ("integer", integer(0, 999))},
        ("Use the tool to add {a} and {b}.", "Call add with {a} and {b}.", "With the add tool, what is {a} + {b}?"),
        "sum",
    ),
    Known(
        "get_stock_price",
        "Get the price of a stock.",
        {"symbol": ("string", Words.code)},
        (
            "What is the stock price of {symbol}?",
            "How much is a share of {symbol}?",
            "Price of {symbol} stock, please.",
        ),
        "stocks",
    ),
    Known(
        "translate",
        "Translate a text.",
        {"text": PHRASE, "language": ("string", choice("French", "German", "Spanish", "Italian", "Japanese"))},
        (
            'Translate "{text}" into {language}.',
            'How do you say "{text}" in {language}?',
            '"{text}" in {language}, please.',
        ),
        "translation",
    ),
    Known(
        "find_flights",
        "Find flights between two cities.",
        {"origin": CITY, "destination": CITY},
        (
            "Find flights from {origin} to {destination}.",
            "I want to fly from {origin} to {destination}.",
            "Which flights go from {origin} to {destination}?",
        ),
        "flights",
    ),
    Known(
        "set_reminder",
        "Set a reminder.",
        {"text": PHRASE, "time": ("string", _time)},
        ('Remind me at {time}: "{text}".', 'Set a reminder "{text}" for {time}.'),
        "reminder",
    ),
    Known(
        "get_user",
        "Look up a user.",
        {"name": NAME},
        ("Look up the user {name}.", "Who is the user {name}?", "Find the user {name}."),
        "user",
    ),
    Known(
        "turn_light",
        "Turn a light on or off.",
        {"room": NOUN, "on": ("boolean", choice("true", "false"))},
        ("Light in the {room}: {on}.", "Set the light in the {room} to {on}."),
        "lights",
    ),
    Known(
        "convert_currency",
        "Convert money.",
        {
            "amount": ("number", integer(1, 9999)),
            "source": ("string", _currency("USD", "EUR", "GBP", "JPY", "CHF")),
            "target": ("string", _currency("SEK", "CAD", "AUD", "NOK", "INR")),
        },
        ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?"),
        "money",
    ),
    Known(
        "Bash",
        "Run a shell command.",
        {"command": ("string", _command)},
        ("Run `{command}`.", "Run the command `{command}`, please.", "Execute `{command}` in the shell."),
        "command",
    ),
    Known(
        "Read",
        "Read a file.",
        {"file_path": PATH},
        ("Read the file {file_path}.", "Show me what is in {file_path}.", "Open {file_path} and read it."),
        "reading",
    ),
    Known(
        "Write",
        "Write a file.",
        {"file_path": PATH, "content": PHRASE},
        ('Write "{content}" to the file {file_path}.', 'Create the file {file_path} with the text "{content}".'),
        "writing",
    ),
    Known(
        "Grep",
        "Search in files.",
        {"pattern": NOUN, "path": PATH},
        ("Search for {pattern} in the file {path}.", "Grep {pattern} in {path}."),
        "pattern",
    ),
)

TOPICS = {tool.name: tool.topic for tool in KNOWN}
"""What a known tool is for, by its name."""
