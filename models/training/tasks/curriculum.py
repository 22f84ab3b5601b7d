"""The curriculum: lesson number n of a half is the same on every machine, whatever was drawn before it.

A lesson is dressed as clients dress their requests: with or without a system prompt, an effort, tools that nobody asked
for, polite words, earlier turns.
"""

from collections.abc import Callable
from random import Random

from models.training.tasks import text_tasks as skills
from models.training.tasks.chat_tasks import chat_lesson, system_prompt
from models.training.tasks.image_tasks import picture_lesson
from models.training.tasks.sample import Lesson, Message, Sample
from models.training.tasks.tool_tasks import call_lesson, others, result_lesson
from models.training.tasks.vocab import Words

SEED = 37
MAKERS: dict[str, Callable[[Words], Lesson]] = {
    "copy": skills.copy_lesson,
    "count": skills.count_lesson,
    "list": skills.list_lesson,
    "sum": skills.sum_lesson,
    "json": skills.json_lesson,
    "tool": call_lesson,
    "result": result_lesson,
    "chat": chat_lesson,
    "image": picture_lesson,
}
EFFORTS = (None, "low", "medium", "high")
BEFORE = ("", "", "", "", "", "Hi! ", "Hello. ", "Please do this: ", "Hey, ", "Now: ", "Next: ", "One more: ")
EARLIER_TURNS, EARLIER_TURNS_TAUGHT = 0.15, 0.35
"""Share of lessons that are not a conversation's first. It is the hardest dress (which of the numbers are meant?), so
training meets it more often than an exam asks for it."""
TOOLS_IN_PASSING, TOOLS_IN_PASSING_TAUGHT = 0.12, 0.3
"""Share of the other lessons that have tools which nobody asks for: not to call them has to be learnt as well."""
ALIKE_TAUGHT = 0.25
"""Share of training's lessons whose numbers and made-up words are alike. An exam has such by chance, and they were half
of what went wrong in it."""
AFTER = ("", "", "", "", "", "", " Thanks!", " Thank you.", " Please.")


def lesson_rng(half: str, skill: str, number: int) -> Random:
    return Random(f"{SEED}/{half}/{skill}/{number}")


def draw(skill: str, number: int, *, held_out: bool, is_plain: bool = False) -> Sample:
    """Sample `number` of a skill. A plain one has no dress: short, for the first minutes of training."""
    rng = lesson_rng("held-out" if held_out else "train", skill, number)
    words = Words(rng, held_out=held_out, are_alike=not held_out and rng.random() < ALIKE_TAUGHT)
    lesson = MAKERS[skill](words)
    effort = rng.choice(EFFORTS)
    if is_plain:
        content: object = lesson.ask
        if lesson.picture is not None:
            content = [{"type": "image"}, {"type": "text", "text": lesson.ask}]
        return Sample(lesson, ({"role": "user", "content": content}, *lesson.after), effort, lesson.tools)
    return dress(lesson, words, effort)


def dress(lesson: Lesson, words: Words, effort: str | None) -> Sample:
    rng = words.rng
    ask = lesson.ask
    if lesson.skill not in ("chat", "image"):
        ask = rng.choice(BEFORE) + ask
        if lesson.skill not in ("copy", "json") or ask.endswith('"'):
            ask += rng.choice(AFTER)
    messages: list[Message] = []
    system = system_prompt(rng, words)
    if system is not None:
        messages.append({"role": "system", "content": system})
    if _happens(words, EARLIER_TURNS, EARLIER_TURNS_TAUGHT):
        messages += earlier_turn(words)
    content: object = ask
    if lesson.picture is not None:
        parts = [{"type": "image"}, {"type": "text", "text": ask}]
        content = parts if rng.random() < 0.8 else parts[::-1]
    messages += [{"role": "user", "content": content}, *lesson.after]
    tools = lesson.tools
    if not tools and lesson.skill != "chat" and _happens(words, TOOLS_IN_PASSING, TOOLS_IN_PASSING_TAUGHT):
        tools = tuple(others(words, rng.randint(1, 3), {"sum"}))
    return Sample(lesson, tuple(messages), effort, tools)


def _happens(words: Words, asked: float, taught: float) -> bool:
    """By chance: in one share of an exam's lessons, in another of those that training draws."""
    return words.rng.random() < (asked if words.held_out else taught)


def earlier_turn(words: Words) -> list[Message]:
    """A finished question and answer of another skill."""
    skill = words.rng.choice(("copy", "sum", "chat", "json", "count"))
    lesson = MAKERS[skill](words)
    if len(lesson.answer) > 200 and skill != "chat":
        lesson = skills.sum_lesson(words)
    return [{"role": "user", "content": lesson.ask}, {"role": "assistant", "content": lesson.answer}]
