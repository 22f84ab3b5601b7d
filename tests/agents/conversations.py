"""What the scripted engine says to each agent, with the tools that the agent has."""

from __future__ import annotations

from typing import Any

ANSWER = "It prints two now: PINEAPPLE."
THOUGHT = "The file first."
RUN = "python3 hello.py > said.txt; cat said.txt"
PATCH = '*** Begin Patch\n*** Update File: hello.py\n@@\n-print("one")\n+print("two")\n*** End Patch'
BLOCK = 'hello.py\n```python\n<<<<<<< SEARCH\nprint("{old}")\n=======\nprint("{new}")\n>>>>>>> REPLACE\n```\n'
SUBMIT = f"echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo '{ANSWER}'"
NOT_THE_TASK = ["You are a title generator"]
"""Requests about the task that are not its turns: OpenCode asks for a title at the same time."""

Turn = dict[str, Any]


def call(tool: str, **arguments: object) -> dict[str, object]:
    """A tool call."""
    return {"name": tool, "arguments": arguments}


def turn(*calls: dict[str, object], say: str = "", **more: object) -> Turn:
    """An assistant's turn."""
    return {"think": THOUGHT, "say": say, "calls": list(calls), **more}


LOOPS: dict[str, list[Turn]] = {
    "claude": [
        turn(call("Read", file_path="{{dir}}/hello.py"), say="I read it."),
        turn(call("Edit", file_path="{{dir}}/hello.py", old_string='print("one")', new_string='print("two")')),
        turn(call("Bash", command=RUN, description="Run it")),
        turn(say=ANSWER),
    ],
    "codex": [
        turn(call("exec_command", cmd="cat hello.py"), say="I read it."),
        turn(call("exec_command", cmd=f"apply_patch <<'EOF'\n{PATCH}\nEOF")),
        turn(call("exec_command", cmd=RUN)),
        turn(say=ANSWER),
    ],
    "opencode": [
        turn(call("read", filePath="{{dir}}/hello.py"), say="I read it."),
        turn(call("edit", filePath="{{dir}}/hello.py", oldString='print("one")', newString='print("two")')),
        turn(call("bash", command=RUN, description="Run it")),
        turn(say=ANSWER),
    ],
    "aider": [
        # The first edit fails aider's test, whose output is the next turn's question.
        turn(say="I edit it.\n\n" + BLOCK.format(old="one", new="twice")),
        turn(say=f"{ANSWER}\n\n" + BLOCK.format(old="twice", new="two")),
    ],
    "mini-swe-agent": [
        turn(call("bash", command="cat hello.py"), say="I read it."),
        turn(call("bash", command="sed -i s/one/two/ hello.py")),
        turn(call("bash", command=RUN)),
        turn(call("bash", command=SUBMIT)),
    ],
}
"""Read a file, edit it, run a command, answer."""


def conversation(task: str, turns: list[Turn]) -> dict[str, Any]:
    """What is said to `task_text(task, ...)`."""
    return {"when": [rf"TASK-{task} in (?P<dir>\S+) "], "unless": NOT_THE_TASK, "turns": turns}


def task_text(task: str, folder: object) -> str:
    """The user's words."""
    return f"Do TASK-{task} in {folder} please."


DEFAULT = {"turns": [{"think": "Nothing.", "say": "A title"}]}
"""For everything else that agents ask: titles, topics, summaries."""


def loops_script() -> list[dict[str, Any]]:
    """Every program's loop, as it should go, and with a crash in the middle of the edit's arguments."""
    script = []
    for name, turns in LOOPS.items():
        script.append(conversation(f"LOOP-{name}", turns))
        edit = {"codex": "+print", "mini-swe-agent": "/two/"}.get(name, '"two"')
        script.append(conversation(f"CRASH-{name}", _crashing(turns, edit)))
    return [*script, DEFAULT]


def _crashing(turns: list[Turn], at_text: str) -> list[Turn]:
    place = next(number for number, one in enumerate(turns) if at_text in _written(one))
    return [{**one, "fault": {"kind": "crash", "at_text": at_text}} if number == place else one
            for number, one in enumerate(turns)]  # fmt: skip


def _written(one: Turn) -> str:
    values = [str(value) for part in one["calls"] for value in part["arguments"].values()]
    return "\n".join([one["say"], *values])
