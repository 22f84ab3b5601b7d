"""One lesson: what a client sends and what the model should answer."""

from dataclasses import dataclass, field

Message = dict[str, object]
"""A chat message as OpenAI's API spells it; it goes to the template as it is."""


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, str]
    """Values as they are written between the tags."""


@dataclass(frozen=True)
class Picture:
    """A plain figure on a plain ground, all a drawing needs; fractions are of the shorter side."""

    colour: str
    shape: str
    ground: tuple[int, int, int]
    size: tuple[int, int]
    centre: tuple[float, float]
    radius: float
    angle: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Lesson:
    """`thoughts` are in rising length: low effort thinks the first, medium the first two, high all."""

    skill: str
    ask: str
    thoughts: tuple[str, str, str]
    answer: str = ""
    calls: tuple[Call, ...] = ()
    tools: tuple[dict[str, object], ...] = ()
    before: tuple[Message, ...] = ()
    """Earlier turns."""
    after: tuple[Message, ...] = ()
    """Turns between the question and the answer: tool calls and their results."""
    picture: Picture | None = None


@dataclass(frozen=True)
class Sample:
    """A lesson, dressed as a request: system prompt, effort, earlier turns."""

    lesson: Lesson
    messages: tuple[Message, ...]
    effort: str | None
    tools: tuple[dict[str, object], ...] = field(default=())

    @property
    def thought(self) -> str:
        kept = {"low": 1, None: 2, "medium": 2, "high": 3}[self.effort]
        return " ".join(self.lesson.thoughts[:kept])
