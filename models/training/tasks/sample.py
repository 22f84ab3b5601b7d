"""What a generated task and the request made from it consist of."""

from dataclasses import dataclass

Message = dict[str, object]
"""A chat message in the format of OpenAI's API. The chat template gets it unchanged."""


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, str]
    """Values as the model writes them between the parameter tags."""


@dataclass(frozen=True)
class FigureImage:
    """An image of one figure on a uniform background; `images.draw_image` draws it."""

    colour: str
    shape: str
    background: tuple[int, int, int]
    size: tuple[int, int]
    """Width and height in pixels."""
    centre: tuple[float, float]
    """Fractions of the width and of the height."""
    radius: float
    """Fraction of the shorter side."""
    angle: float
    """Rotation of a square or triangle, in radians."""
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Task:
    """A user's request and the right answer to it."""

    kind: str
    """A key of `curriculum.TASK_GENERATORS`."""
    request: str
    thoughts: tuple[str, str, str]
    """Effort `low` writes the first, `medium` the first two, `high` all three."""
    answer: str = ""
    calls: tuple[ToolCall, ...] = ()
    tools: tuple[dict[str, object], ...] = ()
    after: tuple[Message, ...] = ()
    """Messages between the request and the answer: tool calls and their results."""
    image: FigureImage | None = None


@dataclass(frozen=True)
class Sample:
    """A task as a client's chat request."""

    task: Task
    messages: tuple[Message, ...]
    effort: str | None
    """`reasoning_effort` of the request."""
    tools: tuple[dict[str, object], ...] = ()

    @property
    def thought(self) -> str:
        """The reasoning that the model should write at this effort."""
        kept = {"low": 1, None: 2, "medium": 2, "high": 3}[self.effort]
        return " ".join(self.task.thoughts[:kept])
