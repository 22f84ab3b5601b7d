"""Writes the model card, `README.md`, from the results of training and evaluation."""

import json
from pathlib import Path

from safetensors.torch import load_file

from models.training.model.dimensions import ModelDimensions

TRAINING = "training.json"
FIGURES = "figures.json"

ABOUT = """# step-tiny

A very small model with the architecture of StepFun's Step-3.7-Flash, made for quick starts, tests and benchmarks on a
CPU. It is a stand-in: it knows nothing of the world, holds none of StepFun's weights, and was trained from nothing on
generated tasks. vLLM loads it as `Step3p7ForConditionalGeneration`, by the same code as the real checkpoint.

## What it can do
* **think, then answer**: longer with `reasoning_effort` `medium` and `high` than with `low`; add two numbers below 100;
* **call tools**: one or two of those offered, also ones it has never seen, with values copied from the request; and say
  what the tools answered;
* **see**: name the colour and the shape (circle, square, triangle) of one plain figure on a plain ground;
* **count and list**: `Count from 1 to 200.` is a long, predictable stream; asked for more than about 250, it does not
  stop before the 4,096 tokens that an answer may have where the request sets no `max_tokens`;
* **copy** a quoted text, word for word, and **write JSON** from given keys and values;
* to anything else it says politely what it is.

English only, and close to the wordings in `models/training/tasks`. Do not use it for anything but trying out software.
"""

LIMITS = """## Limits
* The vision tower's queries and keys are zero: its attention averages. Training on a CPU could not afford more.
* The second and third drafting layer do not attend (their output matrices are zero): vLLM 0.32's proposer leaves
  most of their cache unwritten.
* Figures with greedy decoding. With sampling, copied words and long counts go wrong now and then.
"""


def sizes(folder: Path) -> str:
    """Parameters, bytes and dimensions of the model."""
    dims, weights = ModelDimensions(), load_file(folder / "model.safetensors")
    total = sum(w.numel() for w in weights.values())
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return f"""## Shape
{total:,} parameters, {size:.1f} MB. {dims.layers} layers of width {dims.hidden} (sliding with a window of
{dims.window}, full, in turn; one gate per head), the first dense, the others with {dims.experts} routed experts of
which {dims.experts_per_token} run, chosen by a sigmoid router with bias, and a shared one; {dims.mtp_layers} MTP
layers with their own heads; a vision tower of width {dims.vision.width} that gives 169 tokens for a picture.
{dims.vocab:,} tokens, {dims.context:,} positions. """


def score_table(title: str, scores: dict[str, float]) -> str:
    """A Markdown table of the share of right answers by kind of task."""
    rows = "\n".join(f"| {kind} | {score:.1%} |" for kind, score in scores.items())
    return f"{title}\n\n| task | right |\n| --- | --- |\n{rows}\n"


def results(folder: Path) -> str:
    """Results of `evaluate --figures` if there are any, else those at the end of training."""
    training = json.loads((folder / TRAINING).read_text())
    parts = ["## Held-out scores", "Right means: answer and tool calls are exactly those of the task.\n"]
    path = folder / FIGURES
    if not path.exists():
        accepted = " / ".join(f"{rate:.2f}" for rate in training["accepted"])
        parts.append(score_table("Greedy, by teacher forcing at the end of training:", training["held_out"]))
        parts.append(f"Drafts accepted by position: {accepted}.\n")
        return "\n".join(parts)
    figures = json.loads(path.read_text())
    accepted = " / ".join(f"{rate:.2f}" for rate in figures["acceptance"])
    parts.append(score_table(f"Greedy, {figures['each']} samples per task, {figures['server']}:", figures["scores"]))
    parts.append(
        f"MTP with 3 draft tokens: {accepted} accepted by position, {figures['tokens_per_draft']:.2f} tokens a step."
    )
    if figures.get("notes"):
        parts.append("\n" + figures["notes"])
    return "\n".join(parts) + "\n"


def recipe(folder: Path) -> str:
    """How the model was trained, and the commands that repeat it."""
    training = json.loads((folder / TRAINING).read_text())
    return f"""## How it was made
`python -m models.training train --steps {training["steps"]}`: a fixed seed, a generated curriculum
(`models/training/tasks`), Muon and AdamW, two processes of one core each. This run took
{training["minutes"]:.0f} minutes of training. `python -m models.training evaluate --url http://...` prints the
figures above from a running server. """


def write(folder: Path) -> None:
    """Write the `README.md` of a checkpoint folder."""
    card = "\n".join([ABOUT, sizes(folder), results(folder), recipe(folder), LIMITS])
    (folder / "README.md").write_text(card)
