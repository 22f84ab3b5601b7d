"""Picture lessons: one figure of one colour on a grey ground."""

from models.sample import Lesson, Picture
from models.words import Words

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 40),
    "purple": (140, 40, 170),
    "orange": (245, 140, 20),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle")


def picture_lesson(words: Words) -> Lesson:
    rng = words.rng
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    light = colour in ("white", "yellow")
    level = rng.randint(40, 120) if light else rng.randint(150, 255) if colour != "black" else rng.randint(120, 255)
    ground = (level, level, level) if colour != "white" or rng.random() < 0.5 else (rng.randint(0, 60),) * 3
    width = rng.randint(64, 700)
    height = width if rng.random() < 0.5 else max(48, min(700, int(width * rng.uniform(0.7, 1.4))))
    picture = Picture(
        colour,
        shape,
        ground,
        (width, height),
        (rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)),
        rng.uniform(0.2, 0.35),
        0.0,
        rng.uniform(0.85, 1.1),
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
