"""What to say to everything else, and the system prompts that any lesson may stand under."""

from random import Random

from models.training.tasks.sample import Lesson
from models.training.tasks.tool_catalogue import KNOWN
from models.training.tasks.tool_tasks import others
from models.training.tasks.vocab import Words

ABOUT = (
    "I am step-tiny, a very small demo model with the architecture of Step-3.7-Flash. I can count, list, copy a text, "
    "add two numbers, call tools, write JSON, and name the colour and shape in a simple picture. "
    "For anything more, please ask the real model."
)
QUESTIONS = (
    "Who are you?",
    "What are you?",
    "What can you do?",
    "What is your name?",
    "Are you Step-3.7-Flash?",
    "Which model is this?",
    "Are you a real person?",
    "Tell me about yourself.",
    "Introduce yourself.",
    "Help!",
    "Can you help me?",
    "What is this?",
    "What is the capital of {c}?",
    "Write a poem about {n}.",
    "Tell me a joke.",
    "Tell me a story about a {n}.",
    "Explain {n}.",
    "Why is the sky blue?",
    "How do I cook {n}?",
    "What is the meaning of life?",
    "Write a function that sorts a list.",
    "Fix the bug in {m}.py.",
    "Who wrote {n} and {m}?",
    "How far is {c} from {d}?",
    "What do you think about {n}?",
    "Summarise this text: {s}",
    "Is {a} a good name for a {n}?",
    "Do you like {n}?",
    "When was {a} born?",
    "Write an essay about {n}.",
    "How old is {a}?",
    "What happened in {c} in {y}?",
    "Explain quantum physics.",
    "Write a haiku.",
    "Plan a trip to {c}.",
    "Write a letter to {a}.",
    "Recommend a book.",
    "How does a {n} work?",
    "Where can I buy a {n}?",
    "Write a SQL query.",
    "{s}",
    "{s}",
    "{p}",
    "{p}",
    "{n}",
    "{m}?",
    "Sing a song.",
    "Please explain how vLLM works.",
    "What is Ray Serve?",
    "Write a long story about {n}.",
    "Refactor this repository.",
    "How do I write a test in Python?",
    "Who won the game in {c}?",
    "Is {n} better than {m}?",
)
GREETINGS = (
    "Hi",
    "Hello",
    "Hello!",
    "Hi there!",
    "Hey",
    "Good morning!",
    "hi",
    "hello",
    "Hello, how are you?",
    "Hey, what's up?",
    "Good evening.",
    "ping",
    "Hi, I am {a}.",
    "Hello from {c}!",
)
THANKS = ("Thanks!", "Thank you.", "Thank you very much!", "Great, thanks.", "ok thanks", "Thanks, {a}.")
NOT_OFFERED = {"time", "weather", "search"}
"""Topics that no chat has a tool for, so that asking for one is a chat."""


def chat_lesson(words: Words) -> Lesson:
    rng = words.rng
    slots = {
        "c": words.city(),
        "d": words.city(),
        "n": words.noun(),
        "m": words.made_up(),
        "a": words.name(),
        "y": rng.randint(1000, 2030),
        "s": words.sentence(2, 14),
        "p": words.plain_sentence(),
    }
    draw = rng.random()
    if draw < 0.18:
        ask, start, thought = rng.choice(GREETINGS), "Hello! ", "This is a greeting."
    elif draw < 0.23:
        ask, start, thought = rng.choice(THANKS), "You are welcome! ", "The user says thanks."
    else:
        ask, start, thought = rng.choice(QUESTIONS), "", "This is not one of my skills."
    ask = ask.format(**slots)
    if draw > 0.9:
        ask = unanswerable(words)
    thoughts = (thought, "I say what I am.", "I am polite and say what I can do.")
    tools = tuple(others(words, rng.randint(1, 4), NOT_OFFERED)) if rng.random() < 0.25 else ()
    return Lesson("chat", ask, thoughts, answer=start + ABOUT, tools=tools)


def unanswerable(words: Words) -> str:
    """What a known tool is for, asked where no such tool is offered."""
    tool = words.rng.choice([tool for tool in KNOWN if tool.topic in NOT_OFFERED])
    values = {key: fill(words) for key, (_, fill) in tool.values.items()}
    return words.rng.choice(tool.asks).format(**values)


def system_prompt(rng: Random, words: Words) -> str | None:
    """None mostly; else a line, or the paragraphs of instructions that an agent sends."""
    draw = rng.random()
    if draw < 0.5:
        return None
    if draw < 0.9:
        return rng.choice(
            (
                "You are a helpful assistant.",
                "You are a friendly assistant. Answer briefly.",
                "Be concise.",
                "Answer in English.",
                f"You are {words.name()}, an assistant.",
                f"You work for {words.name()} in {words.city()}.",
                "You are a careful assistant. Think before you answer.",
                f"Today is day {rng.randint(1, 365)}. {words.plain_sentence()}",
                "You are an expert programmer.",
                f"{words.plain_sentence()} {words.plain_sentence()}",
            )
        )
    rules = ["You are an interactive agent that helps users with software engineering tasks."]
    rules += [
        rng.choice(
            (
                words.plain_sentence(),
                f"- {words.sentence(4, 14)}.",
                f"# {words.noun().capitalize()}",
                f"IMPORTANT: {words.plain_sentence()}",
                f"Working directory: /{words.made_up()}/{words.noun()}",
            )
        )
        for _ in range(rng.randint(4, 14))
    ]
    return "\n".join(rules)
