"""The curriculum: kind, number and split give the same sample on every machine, whatever was drawn before it.

Samples vary as clients' requests do: system prompt, effort, tools that are not needed, polite words, earlier turns.
"""

from collections.abc import Callable
from random import Random

from models.training.tasks import text_tasks
from models.training.tasks.chat_tasks import chat_task, system_prompt
from models.training.tasks.image_tasks import image_task
from models.training.tasks.sample import Message, Sample, Task
from models.training.tasks.tool_tasks import call_task, distractors, result_task
from models.training.tasks.vocab import Vocab

SEED = 37
TASK_GENERATORS: dict[str, Callable[[Vocab], Task]] = {
    "copy": text_tasks.copy_task,
    "count": text_tasks.count_task,
    "list": text_tasks.list_task,
    "sum": text_tasks.sum_task,
    "json": text_tasks.json_task,
    "tool": call_task,
    "result": result_task,
    "chat": chat_task,
    "image": image_task,
}
"""Generators by the kind of task."""
EFFORTS = (None, "low", "medium", "high")
PREFIXES = ("", "", "", "", "", "Hi! ", "Hello. ", "Please do this: ", "Hey, ", "Now: ", "Next: ", "One more: ")
SUFFIXES = ("", "", "", "", "", "", " Thanks!", " Thank you.", " Please.")
EARLIER_TURNS_EVAL_SHARE, EARLIER_TURNS_TRAIN_SHARE = 0.15, 0.35
"""Share of samples with an earlier turn. They are the hardest ones (two requests), so training has more of them."""
UNUSED_TOOLS_EVAL_SHARE, UNUSED_TOOLS_TRAIN_SHARE = 0.12, 0.3
"""Share of samples that offer tools although their task needs none, so that the model learns not to call them."""
CONFUSABLE_TRAIN_SHARE = 0.25
"""Share of training samples with similar numbers and made-up words. Evaluation has such by chance only, but they caused
half of its errors before."""


def task_rng(split: str, kind: str, number: int) -> Random:
    """The random generator of one sample. `split` is `train` or `held-out`."""
    return Random(f"{SEED}/{split}/{kind}/{number}")


def draw(kind: str, number: int, *, held_out: bool, is_plain: bool = False) -> Sample:
    """Sample `number` of a kind. A plain one has no context: short rows, for the start of training."""
    rng = task_rng("held-out" if held_out else "train", kind, number)
    vocab = Vocab(rng, held_out=held_out, is_confusable=not held_out and rng.random() < CONFUSABLE_TRAIN_SHARE)
    task = TASK_GENERATORS[kind](vocab)
    effort = rng.choice(EFFORTS)
    if is_plain:
        content: object = task.request
        if task.image is not None:
            content = [{"type": "image"}, {"type": "text", "text": task.request}]
        return Sample(task, ({"role": "user", "content": content}, *task.after), effort, task.tools)
    return add_context(task, vocab, effort)


def add_context(task: Task, vocab: Vocab, effort: str | None) -> Sample:
    """The task as a request with polite words, and perhaps a system prompt, an earlier turn and unused tools."""
    rng = vocab.rng
    request = task.request
    if task.kind not in ("chat", "image"):
        request = rng.choice(PREFIXES) + request
        if task.kind not in ("copy", "json") or request.endswith('"'):
            request += rng.choice(SUFFIXES)
    messages: list[Message] = []
    system = system_prompt(rng, vocab)
    if system is not None:
        messages.append({"role": "system", "content": system})
    if rng.random() < (EARLIER_TURNS_EVAL_SHARE if vocab.held_out else EARLIER_TURNS_TRAIN_SHARE):
        messages += earlier_turn(vocab)
    content: object = request
    if task.image is not None:
        parts = [{"type": "image"}, {"type": "text", "text": request}]
        content = parts if rng.random() < 0.8 else parts[::-1]
    messages += [{"role": "user", "content": content}, *task.after]
    return Sample(task, tuple(messages), effort, task.tools or _unused_tools(task, vocab))


def _unused_tools(task: Task, vocab: Vocab) -> tuple[dict[str, object], ...]:
    share = UNUSED_TOOLS_EVAL_SHARE if vocab.held_out else UNUSED_TOOLS_TRAIN_SHARE
    if task.kind == "chat" or vocab.rng.random() >= share:  # chat tasks choose their own
        return ()
    return tuple(distractors(vocab, vocab.rng.randint(1, 3), {"sum"}))


def earlier_turn(vocab: Vocab) -> list[Message]:
    """A request of another task and its answer."""
    kind = vocab.rng.choice(("copy", "sum", "chat", "json", "count"))
    task = TASK_GENERATORS[kind](vocab)
    if len(task.answer) > 200 and kind != "chat":
        task = text_tasks.sum_task(vocab)
    return [{"role": "user", "content": task.request}, {"role": "assistant", "content": task.answer}]
