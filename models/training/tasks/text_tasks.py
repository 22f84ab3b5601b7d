"""Tasks in plain text: copy, count, list, sum and JSON."""

import json
from random import Random

from models.training.tasks.sample import Task
from models.training.tasks.tool_tasks import KEYS, TYPES
from models.training.tasks.vocab import Vocab, is_held_out

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
LISTS = {"days of the week": DAYS, "months of the year": MONTHS, "letters of the alphabet": LETTERS, "planets": PLANETS}


def copy_task(vocab: Vocab) -> Task:
    """Repeat a text, quoted mostly."""
    rng = vocab.rng
    draw = rng.random()
    if draw < 0.35:
        text = vocab.plain_sentence()
    else:
        text = vocab.sentence(1, 20) if draw > 0.96 else vocab.sentence(1, 8)
        text += rng.choice(("", "", ".", "!", "?"))
    quoted = (
        'Repeat after me: "{}"',
        'Copy this text: "{}"',
        'Say "{}"',
        'Write exactly this: "{}"',
        'Please repeat "{}".',
        'Echo "{}"',
        'Copy the text "{}" word for word.',
        'Repeat the following text exactly: "{}"',
        'Answer with "{}".',
        'Can you say "{}"?',
        'Copy "{}".',
        'Reply with exactly "{}" and nothing else.',
    )
    bare = ("Repeat after me: {}", "Copy this text: {}", "Say: {}", "Echo: {}")
    request = rng.choice(quoted if rng.random() < 0.85 else bare).format(text)
    thoughts = ("I repeat the text.", "I repeat it word for word.", "I add nothing and leave nothing out.")
    return Task("copy", request, thoughts, answer=text)


def count_task(vocab: Vocab) -> Task:
    """Count from one number to another."""
    rng = vocab.rng
    start, end = vocab.draw_confusable(lambda: _span(vocab))
    requests = [
        "Count from {a} to {b}.",
        "Please count from {a} to {b}.",
        "Count from {a} up to {b}",
        "List the numbers from {a} to {b}.",
        "Write all numbers from {a} to {b}.",
        "Can you count from {a} to {b}?",
        "Give me the numbers {a} to {b}.",
        "Count {a} to {b}.",
        "Start at {a} and count to {b}.",
        "I want you to count from {a} to {b}.",
        "Say the numbers {a} through {b}.",
    ]
    if start == 1:
        requests += ["Count to {b}.", "Count up to {b}.", "Can you count to {b}?", "Please count to {b}."]
    request = rng.choice(requests).format(a=start, b=end)
    return counting(request, start, end)


def _span(vocab: Vocab) -> tuple[int, int]:
    """First and last number of a count in this split."""
    rng = vocab.rng
    length = rng.choice((rng.randint(2, 12), rng.randint(5, 40), rng.randint(5, 80)))
    if rng.random() < 0.03:
        length = rng.randint(80, 250)
    while True:
        start = rng.choice((1, 1, 1, 1, 0, rng.randint(0, 120), rng.randint(0, 899)))
        end = start + length - 1
        if is_held_out(f"{start}-{end}") == vocab.held_out:
            return start, end


def counting(request: str, start: int, end: int) -> Task:
    """The task of counting from `start` to `end`, both included, with the given request."""
    thoughts = (f"I go from {start} to {end}.", "I go up one by one.", f"I begin with {start} and stop after {end}.")
    return Task("count", request, thoughts, answer=", ".join(map(str, range(start, end + 1))) + ".")


FULL_LIST_REQUESTS = (
    "List the {t}.",
    "What are the {t}?",
    "Name the {t}.",
    "Write a list of the {t}.",
    "Please list all {t}.",
)
FIRST_ITEMS_REQUESTS = (
    "List the first {n} {t}.",
    "Give me a list of the first {n} {t}.",
    "What are the first {n} {t}?",
    "Write a list: the first {n} {t}.",
)
REPEAT_REQUESTS = (
    'Write "{x}" {n} times.',
    'List "{x}" {n} times.',
    'Repeat "{x}" {n} times.',
    'Say "{x}" {n} times.',
    'Write {n} lines that say "{x}".',
    'Give me a list with "{x}" {n} times.',
    'I want {n} lines with "{x}".',
)


def list_task(vocab: Vocab) -> Task:
    """A numbered list: the start of a known list, or one text repeated."""
    request, items, about = _known_items(vocab.rng) if vocab.rng.random() < 0.35 else _repeated_item(vocab)
    answer = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    return Task("list", request, (*about, "I give each line its number."), answer=answer)


def _known_items(rng: Random) -> tuple[str, list[str], tuple[str, str]]:
    """Request, items and the first two thoughts."""
    topic = rng.choice(list(LISTS))
    items = LISTS[topic]
    if rng.random() < 0.6:
        items = items[: rng.randint(1, len(items))]
        request = rng.choice(FIRST_ITEMS_REQUESTS).format(n=len(items), t=topic)
    else:
        request = rng.choice(FULL_LIST_REQUESTS).format(t=topic)
    return request, items, (f"I write the {topic}.", f"There are {len(items)} lines.")


def _repeated_item(vocab: Vocab) -> tuple[str, list[str], tuple[str, str]]:
    """Request, items and the first two thoughts."""
    rng = vocab.rng
    count = rng.choice((rng.randint(2, 8), rng.randint(2, 25)))
    text = vocab.sentence(1, 3)
    request = rng.choice(REPEAT_REQUESTS).format(x=text, n=count)
    return request, [text] * count, (f"I write {count} lines.", "Each line says the same.")


def sum_task(vocab: Vocab) -> Task:
    """Add two numbers below 100. The thoughts compute the ones, the carry and the tens."""
    rng = vocab.rng
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, rng.choice((9, 99)))
        if is_held_out(f"{a}+{b}") == vocab.held_out:
            break
    noun, name = vocab.noun(), vocab.name()
    request = rng.choice(
        (
            "What is {a} + {b}?",
            "What is {a} plus {b}?",
            "Add {a} and {b}.",
            "{a} + {b} = ?",
            "How much is {a} + {b}?",
            "{a}+{b}",
            "Calculate {a} + {b}.",
            "What's {a} + {b}?",
            "Can you add {a} and {b}?",
            "Compute the sum of {a} and {b}.",
            f"{name} has {{a}} {noun}s and gets {{b}} more. How many are there now?",
            f"There are {{a}} {noun}s in a box and {{b}} in another. How many in all?",
        )
    ).format(a=a, b=b)
    ones = a % 10 + b % 10
    carry = ones // 10
    tens = a // 10 + b // 10
    steps = f"Ones: {a % 10} + {b % 10} = {ones}. Tens: {a // 10} + {b // 10} = {tens}, and {carry} is {tens + carry}."
    thoughts = (f"I add {a} and {b}. {steps}", f"Together that is {a + b}.", f"So {a} + {b} = {a + b}.")
    return Task("sum", request, thoughts, answer=f"{a} + {b} = {a + b}.")


def json_task(vocab: Vocab) -> Task:
    """Write a flat JSON object from given keys and values."""
    rng = vocab.rng
    keys = list(
        dict.fromkeys(rng.choice(KEYS) if rng.random() < 0.75 else vocab.made_up() for _ in range(rng.randint(1, 3)))
    )
    types = {key: rng.choice(("string", "string", "integer", "number", "boolean")) for key in keys}
    values = {key: TYPES[json_type](vocab) for key, json_type in types.items()}
    result = {key: value if types[key] == "string" else json.loads(value) for key, value in values.items()}
    joint = rng.choice((": ", ": ", " = ", " is "))
    listed = ", ".join(f"{k}{joint}{v}" for k, v in values.items())
    fields = {key: {"type": json_type} for key, json_type in types.items()}
    schema = json.dumps({"type": "object", "properties": fields, "required": keys})
    plain = (
        "Give me JSON with {v}.",
        "Write this as JSON: {v}.",
        "Turn this into JSON: {v}",
        "Make a JSON object from {v}.",
        "Answer in JSON: {v}.",
        "Return a JSON object with {v}.",
    )
    with_schema = (
        "Give JSON for this schema: {s}\n{v}",
        "{v}\nAnswer with JSON that fits this schema: {s}",
        "Fill this JSON schema: {s} Values: {v}.",
    )
    request = rng.choice(plain if rng.random() < 0.7 else with_schema).format(v=listed, s=schema)
    thoughts = ("I write JSON.", "Keys and values come from the request.", "I add nothing and leave nothing out.")
    return Task("json", request, thoughts, answer=json.dumps(result))
