"""Image tasks: name the colour and the shape of one figure on a grey background."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from models.training.tasks.sample import FigureImage, Task
from models.training.tasks.vocab import Vocab

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
"""Variants of each colour: natural ones, and the exact value that CSS and drawing programs give the name."""
JITTER = 14
"""Largest random change of an RGB level."""
MAX_ANGLE = 0.1
"""Radians. Small, but not zero: an axis-parallel edge between two patches would be in neither of them."""
SHAPES = ("circle", "square", "triangle")

REQUESTS = (
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

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation, which vLLM's image processor for Step-3 applies."""


def image_task(vocab: Vocab) -> Task:
    """A figure with random colour, shape, position, size and background."""
    rng = vocab.rng
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    light, dark = colour == "white", colour == "black"
    level = rng.randint(0, 150) if light else rng.randint(255 if rng.random() < 0.3 else 110 if dark else 60, 255)
    red, green, blue = (min(255, max(0, c + rng.randint(-JITTER, JITTER))) for c in rng.choice(COLOURS[colour]))
    width = rng.randint(64, 700)
    height = width if rng.random() < 0.5 else max(48, min(700, int(width * rng.uniform(0.7, 1.4))))
    image = FigureImage(
        colour,
        shape,
        (level, level, level),
        (width, height),
        (rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)),
        rng.uniform(0.2, 0.4),
        0.0 if rng.random() < 0.6 else rng.uniform(-MAX_ANGLE, MAX_ANGLE),
        (red, green, blue),
    )
    request = rng.choice(REQUESTS)
    thoughts = (
        "I look at the picture.",
        f"The colour is {colour}, the shape is a {shape}.",
        "There is nothing else in it.",
    )
    article = "an" if colour == "orange" else "a"
    return Task("image", request, thoughts, answer=f"The picture shows {article} {colour} {shape}.", image=image)


def draw_image(spec: FigureImage) -> Image.Image:
    width, height = spec.size
    image = Image.new("RGB", spec.size, spec.background)
    side = min(width, height)
    x, y, r = spec.centre[0] * width, spec.centre[1] * height, spec.radius * side
    canvas = ImageDraw.Draw(image)
    if spec.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=spec.rgb)
    else:
        corners = 4 if spec.shape == "square" else 3
        first = math.pi / 4 if corners == 4 else -math.pi / 2
        angles = [first + spec.angle + 2 * math.pi * i / corners for i in range(corners)]
        canvas.polygon([(x + r * math.cos(t), y + r * math.sin(t)) for t in angles], fill=spec.rgb)
    return image


def to_pixels(image: Image.Image, side: int = 728) -> Tensor:
    """Resized and normalised, [3, side, side], as vLLM's image processor does it.

    Pillow is ten times as fast as the processor, and differs only in rounding to whole levels.
    """
    scaled = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.asarray(scaled, dtype=np.float32) / 255.0).permute(2, 0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return (values - mean) / std
