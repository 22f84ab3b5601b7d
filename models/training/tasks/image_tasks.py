"""Picture lessons: one figure of one colour on a grey ground."""

from models.training.tasks.sample import Lesson, Picture
from models.training.tasks.vocab import Words

RGB = tuple[int, int, int]
COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((220, 30, 30), (255, 0, 0), (200, 20, 40)),
    "green": ((30, 160, 50), (0, 128, 0), (0, 255, 0)),
    "blue": ((40, 70, 220), (0, 0, 255), (30, 30, 180)),
    "yellow": ((240, 220, 40), (255, 255, 0)),
    "purple": ((140, 40, 170), (128, 0, 128)),
    "orange": ((245, 140, 20), (255, 165, 0)),
    "black": ((15, 15, 15), (0, 0, 0)),
    "white": ((250, 250, 250), (255, 255, 255)),
}
"""What people mean by a colour's name: a plain one, and the one that programs draw for it."""
JITTER = 14
TURN = 0.1
"""Radians by which a figure may be turned. An edge between two patches is seen by neither."""
SHAPES = ("circle", "square", "triangle")


def picture_lesson(words: Words) -> Lesson:
    rng = words.rng
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    light, dark = colour == "white", colour == "black"
    level = rng.randint(0, 150) if light else rng.randint(255 if rng.random() < 0.3 else 110 if dark else 60, 255)
    red, green, blue = (min(255, max(0, c + rng.randint(-JITTER, JITTER))) for c in rng.choice(COLOURS[colour]))
    width = rng.randint(64, 700)
    height = width if rng.random() < 0.5 else max(48, min(700, int(width * rng.uniform(0.7, 1.4))))
    picture = Picture(
        colour,
        shape,
        (level, level, level),
        (width, height),
        (rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)),
        rng.uniform(0.2, 0.4),
        0.0 if rng.random() < 0.6 else rng.uniform(-TURN, TURN),
        (red, green, blue),
    )
    ask = rng.choice(
        (
            "What is in this picture?",
            "What do you see?",
            "Describe the image.",
            "Which shape is this, and which colour?",
            "What is this?",
            "What colour and shape is in the image?",
            "What is in the image?",
            "Name the shape and its colour.",
            "What does the picture show?",
            "Look at the picture. What is it?",
            "Describe this image in one sentence.",
        )
    )
    thoughts = (
        "I look at the picture.",
        f"The colour is {colour}, the shape is a {shape}.",
        "There is nothing else in it.",
    )
    article = "an" if colour == "orange" else "a"
    return Lesson("image", ask, thoughts, answer=f"The picture shows {article} {colour} {shape}.", picture=picture)
