"""Writes the model card from what training and evaluation measured, so that no figure in it is typed by hand."""

import json
from pathlib import Path

from safetensors.torch import load_file

from models.training.model.dimensions import Shape

TRAINING = "training.json"
FIGURES = "figures.json"

ABOUT = """# step-tiny

A very small model with the architecture of StepFun's Step-3.7-Flash, made for quick starts, tests and benchmarks on a
CPU. It is a stand-in: it knows nothing of the world, holds none of StepFun's weights, and was trained from nothing on
generated lessons. vLLM loads it as `Step3p7ForConditionalGeneration`, by the same code as the real checkpoint.

## What it can do
* **think, then answer**: longer with `reasoning_effort` `medium` and `high` than with `low`; add two numbers below 100;
* **call tools**: one or two of those offered, also ones it has never seen, with values copied from the request; and say
  what the tools answered;
* **see**: name the colour and the shape (circle, square, triangle) of one plain figure on a plain ground;
* **count and list**: `Count from 1 to 200.` is a long, predictable stream; asked for more than about 250, it does not
  stop before the 4,096 tokens that an answer may have where the request sets no `max_tokens`;
* **copy** a quoted text, word for word, and **write JSON** from given keys and values;
* to anything else it says politely what it is.

English only, and close to the wordings of `models/skills.py`. Do not use it for anything but trying out software.
"""

LIMITS = """## Limits
* The vision tower's queries and keys are zero: its attention averages. Training on a CPU could not afford more.
* The second and third drafting layer do not attend (their output matrices are zero): vLLM 0.32's proposer leaves
  most of their cache unwritten.
* Figures with greedy decoding. With sampling, copied words and long counts go wrong now and then.
"""


def sizes(folder: Path) -> str:
    shape, weights = Shape(), load_file(folder / "model.safetensors")
    total = sum(w.numel() for w in weights.values())
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return f"""## Shape
{total:,} parameters, {size:.1f} MB. {shape.layers} layers of width {shape.hidden} (sliding with a window of
{shape.window}, full, in turn; one gate per head), the first dense, the others with {shape.experts} routed experts of
which {shape.experts_per_token} run, chosen by a sigmoid router with bias, and a shared one; {shape.mtp_layers} MTP
layers with their own heads; a vision tower of width {shape.vision.width} that gives 169 tokens for a picture.
{shape.vocab:,} tokens, {shape.context:,} positions. """


def scores(title: str, held_out: dict[str, float]) -> str:
    rows = "\n".join(f"| {skill} | {score:.1%} |" for skill, score in held_out.items())
    return f"{title}\n\n| skill | right |\n| --- | --- |\n{rows}\n"


def measured(folder: Path) -> str:
    """What a server gave, where `python -m models.evaluate --figures` has been run; else what training saw."""
    training = json.loads((folder / TRAINING).read_text())
    parts = ["## Held-out scores", "Right means: answer and tool calls are exactly what the lesson wants.\n"]
    path = folder / FIGURES
    if not path.exists():
        accepted = " / ".join(f"{share:.2f}" for share in training["accepted"])
        parts.append(scores("Greedy, by teacher forcing at the end of training:", training["held_out"]))
        parts.append(f"Drafts accepted by position: {accepted}.\n")
        return "\n".join(parts)
    figures = json.loads(path.read_text())
    accepted = " / ".join(f"{share:.2f}" for share in figures["acceptance"])
    parts.append(scores(f"Greedy, {figures['each']} lessons per skill, {figures['server']}:", figures["scores"]))
    parts.append(
        f"MTP with 3 draft tokens: {accepted} accepted by position, {figures['tokens_per_draft']:.2f} tokens a step."
    )
    if figures.get("notes"):
        parts.append("\n" + figures["notes"])
    return "\n".join(parts) + "\n"


def made(folder: Path) -> str:
    training = json.loads((folder / TRAINING).read_text())
    return f"""## How it was made
`python -m models.train --steps {training["steps"]}`: a fixed seed, a generated curriculum (`models/curriculum.py`),
Muon and AdamW, two workers of one core each. This run took {training["minutes"]:.0f} minutes of
training. `python -m models.evaluate --url http://...` prints the figures above from a running server. """


def write(folder: Path) -> None:
    """`README.md` of a checkpoint."""
    card = "\n".join([ABOUT, sizes(folder), measured(folder), made(folder), LIMITS])
    (folder / "README.md").write_text(card)
