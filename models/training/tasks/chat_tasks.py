"""Chat tasks, which the model answers with what it is and can do, and system prompts for tasks of every kind."""

from random import Random

from models.training.tasks.sample import Task
from models.training.tasks.tool_catalogue import KNOWN_TOOLS
from models.training.tasks.tool_tasks import distractors
from models.training.tasks.vocab import Vocab

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
"""Topics of tools that no chat task offers. A request that needs one is answered as chat."""


def chat_task(vocab: Vocab) -> Task:
    """A greeting, thanks, or a question about anything."""
    rng = vocab.rng
    slots = {
        "c": vocab.city(),
        "d": vocab.city(),
        "n": vocab.noun(),
        "m": vocab.made_up(),
        "a": vocab.name(),
        "y": rng.randint(1000, 2030),
        "s": vocab.sentence(2, 14),
        "p": vocab.plain_sentence(),
    }
    draw = rng.random()
    if draw < 0.18:
        request, greeting, thought = rng.choice(GREETINGS), "Hello! ", "This is a greeting."
    elif draw < 0.23:
        request, greeting, thought = rng.choice(THANKS), "You are welcome! ", "The user says thanks."
    else:
        request, greeting, thought = rng.choice(QUESTIONS), "", "This is not one of my skills."
    request = request.format(**slots)
    if draw > 0.9:
        request = unanswerable(vocab)
    thoughts = (thought, "I say what I am.", "I am polite and say what I can do.")
    tools = tuple(distractors(vocab, rng.randint(1, 4), NOT_OFFERED)) if rng.random() < 0.25 else ()
    return Task("chat", request, thoughts, answer=greeting + ABOUT, tools=tools)


def unanswerable(vocab: Vocab) -> str:
    """A request for a tool of a topic in `NOT_OFFERED`."""
    tool = vocab.rng.choice([tool for tool in KNOWN_TOOLS if tool.topic in NOT_OFFERED])
    values = {key: generate(vocab) for key, (_, generate) in tool.parameters.items()}
    return vocab.rng.choice(tool.requests).format(**values)


def system_prompt(rng: Random, vocab: Vocab) -> str | None:
    """Nothing in half of the cases, else one line or several, like a coding agent's instructions."""
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
                f"You are {vocab.name()}, an assistant.",
                f"You work for {vocab.name()} in {vocab.city()}.",
                "You are a careful assistant. Think before you answer.",
                f"Today is day {rng.randint(1, 365)}. {vocab.plain_sentence()}",
                "You are an expert programmer.",
                f"{vocab.plain_sentence()} {vocab.plain_sentence()}",
            )
        )
    rules = ["You are an interactive agent that helps users with software engineering tasks."]
    rules += [
        rng.choice(
            (
                vocab.plain_sentence(),
                f"- {vocab.sentence(4, 14)}.",
                f"# {vocab.noun().capitalize()}",
                f"IMPORTANT: {vocab.plain_sentence()}",
                f"Working directory: /{vocab.made_up()}/{vocab.noun()}",
            )
        )
        for _ in range(rng.randint(4, 14))
    ]
    return "\n".join(rules)
