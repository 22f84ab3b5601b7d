"""Common tools, requests that need each of them, and generators for their arguments."""

from collections.abc import Callable
from dataclasses import dataclass

from models.training.tasks.vocab import Vocab

ValueGenerator = Callable[[Vocab], str]


@dataclass(frozen=True)
class KnownTool:
    """A tool definition and requests for it."""

    name: str
    description: str
    parameters: dict[str, tuple[str, ValueGenerator]]
    """JSON type and value generator by parameter name."""
    requests: tuple[str, ...]
    """Format strings with one field per parameter."""
    topic: str
    """One word for the thoughts. The tokenizer has it as one token."""


def integer(low: int, high: int) -> ValueGenerator:
    return lambda vocab: str(vocab.number(low, high))


def choice(*options: str) -> ValueGenerator:
    return lambda vocab: vocab.rng.choice(options)


def _path(vocab: Vocab) -> str:
    ending = vocab.rng.choice((".py", ".txt", ".md", ".json", ".yaml"))
    folder = vocab.rng.choice(("", "src/", "docs/", "/tmp/", f"{vocab.made_up()}/"))  # noqa: S108  # text, not a path
    return f"{folder}{vocab.noun()}{ending}"


def _command(vocab: Vocab) -> str:
    """Half of the commands are arbitrary words: the model would guess a few known ones instead of copying them."""
    known = ("ls", "cat", "git status", "pytest", "make", "grep -n", "rm", "mkdir")
    verb = vocab.rng.choice((vocab.rng.choice(known), vocab.noun()))
    return verb if vocab.rng.random() < 0.2 else f"{verb} {_path(vocab)}"


def _time(vocab: Vocab) -> str:
    return f"{vocab.rng.randint(0, 23):02d}:{vocab.rng.choice(('00', '15', '30', '45'))}"


def _currency(*known: str) -> ValueGenerator:
    """A known currency or any three letters, for the same reason as in `_command`."""
    return lambda vocab: vocab.rng.choice((vocab.rng.choice(known), "".join(vocab.rng.choices(vocab.capitals, k=3))))


def _phrase(vocab: Vocab) -> str:
    return vocab.sentence(1, 4)


def _mail(vocab: Vocab) -> str:
    return f"{vocab.name().lower()}@{vocab.made_up()}.com"


CITY: tuple[str, ValueGenerator] = ("string", Vocab.city)
NAME: tuple[str, ValueGenerator] = ("string", Vocab.name)
NOUN: tuple[str, ValueGenerator] = ("string", Vocab.noun)
PHRASE: tuple[str, ValueGenerator] = ("string", _phrase)
PATH: tuple[str, ValueGenerator] = ("string", _path)

KNOWN_TOOLS = (
    KnownTool(
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
    KnownTool(
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
    KnownTool(
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
    KnownTool(
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
    KnownTool(
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
    KnownTool(
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
    KnownTool(
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
    KnownTool(
        "add",
        "Add two numbers.",
        {"a": ("integer", integer(0, 999)), "b": ("integer", integer(0, 999))},
        ("Use the tool to add {a} and {b}.", "Call add with {a} and {b}.", "With the add tool, what is {a} + {b}?"),
        "sum",
    ),
    KnownTool(
        "get_stock_price",
        "Get the price of a stock.",
        {"symbol": ("string", Vocab.code)},
        (
            "What is the stock price of {symbol}?",
            "How much is a share of {symbol}?",
            "Price of {symbol} stock, please.",
        ),
        "stocks",
    ),
    KnownTool(
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
    KnownTool(
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
    KnownTool(
        "set_reminder",
        "Set a reminder.",
        {"text": PHRASE, "time": ("string", _time)},
        ('Remind me at {time}: "{text}".', 'Set a reminder "{text}" for {time}.'),
        "reminder",
    ),
    KnownTool(
        "get_user",
        "Look up a user.",
        {"name": NAME},
        ("Look up the user {name}.", "Who is the user {name}?", "Find the user {name}."),
        "user",
    ),
    KnownTool(
        "turn_light",
        "Turn a light on or off.",
        {"room": NOUN, "on": ("boolean", choice("true", "false"))},
        ("Light in the {room}: {on}.", "Set the light in the {room} to {on}."),
        "lights",
    ),
    KnownTool(
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
    KnownTool(
        "Bash",
        "Run a shell command.",
        {"command": ("string", _command)},
        ("Run `{command}`.", "Run the command `{command}`, please.", "Execute `{command}` in the shell."),
        "command",
    ),
    KnownTool(
        "Read",
        "Read a file.",
        {"file_path": PATH},
        ("Read the file {file_path}.", "Show me what is in {file_path}.", "Open {file_path} and read it."),
        "reading",
    ),
    KnownTool(
        "Write",
        "Write a file.",
        {"file_path": PATH, "content": PHRASE},
        ('Write "{content}" to the file {file_path}.', 'Create the file {file_path} with the text "{content}".'),
        "writing",
    ),
    KnownTool(
        "Grep",
        "Search in files.",
        {"pattern": NOUN, "path": PATH},
        ("Search for {pattern} in the file {path}.", "Grep {pattern} in {path}."),
        "pattern",
    ),
)

TOPICS = {tool.name: tool.topic for tool in KNOWN_TOOLS}
"""Topic by tool name."""
