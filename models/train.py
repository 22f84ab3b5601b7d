"""`python -m models.train`: makes the demo model from nothing, or goes on where it stopped.

The same seed gives the same curriculum, the same start and the same order. A run keeps its state in `--state`; started
again it resumes there, until its steps are done. Then the checkpoint is written, and its held-out scores beside it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer

from models import batches, checkpoint, curriculum, objective
from models import tokenizer as tokens
from models.architecture import Step
from models.batches import Batch, Encoder
from models.muon import Muon
from models.shape import Shape
from models.template import Renderer, completion
from models.words import spelling_corpus

TOKENS_PER_STEP = 6_144
PLAIN_CHUNKS = 20
"""Chunks without system prompts, tools in passing and earlier turns: copying is learnt sooner on short rows."""
WARM_UP = 40
COOL_DOWN = 0.45
"""Share of the steps over which the rates fall to nothing."""
MUON_RATE, ADAM_RATE = 0.02, 0.004
BALANCE_RATE = 0.005
"""Step of the router's bias towards experts that got too few tokens, as the real model was balanced."""


@dataclass
class Progress:
    step: int = 0
    chunk: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def make_tokenizer(shape: Shape) -> Tokenizer:
    """From the curriculum's own texts: the same every time."""
    renderer = Renderer(checkpoint.ASSETS / "chat_template.jinja")
    samples = [curriculum.draw(skill, i, False) for skill in curriculum.MAKERS for i in range(600)]
    texts = [renderer.prompt(sample) + completion(sample) for sample in samples]
    return tokens.build(texts, spelling_corpus(curriculum.lesson_rng("train", "spelling", 0)), shape.vocab)


def optimizers(model: Step) -> list[torch.optim.Optimizer]:
    inner, rest = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        is_inner = p.dim() >= 2 and ".layers." in name and not name.endswith(("gate.weight", "output.weight", "g_proj.weight"))
        (inner if is_inner or "gate_proj.weight" in name else rest).append(p)
    return [Muon(inner, MUON_RATE), torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.97), weight_decay=0.01)]


def rate(step: int, steps: int) -> float:
    """Warm up, stay, cool down in a straight line."""
    return min(1.0, (step + 1) / WARM_UP, max(0.02, (steps - step) / (steps * COOL_DOWN)))


def balance(model: Step) -> None:
    """Nudge each router's bias by the sign of its experts' shortage."""
    for layer in model.model.layers:
        if getattr(layer, "is_sparse", False):
            load = layer.moe.load
            layer.moe.router_bias += BALANCE_RATE * torch.sign(load.mean() - load)
            layer.moe.load = torch.zeros_like(load)


class Run:
    """A training run and its state on disk."""

    def __init__(self, steps: int, state: Path) -> None:
        torch.manual_seed(curriculum.SEED)
        self.steps, self.state = steps, state
        self.tokenizer = make_tokenizer(Shape())
        self.encoder = Encoder(self.tokenizer, Renderer(checkpoint.ASSETS / "chat_template.jinja"))
        self.model = Step(Shape(), self.encoder.image)
        objective.silence_later_drafts(self.model)
        self.optimizers = optimizers(self.model)
        self.progress = Progress()
        self.losses = [0.0] * (1 + self.model.shape.mtp_layers)
        if state.exists():
            self.resume()

    def resume(self) -> None:
        saved = torch.load(self.state, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, was in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(was)
        self.progress = Progress(**saved["progress"])

    def keep(self) -> None:
        """Written beside and moved, so that a kill leaves the last whole state."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        beside = self.state.with_suffix(".part")
        torch.save({
            "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": asdict(self.progress),
        }, beside)
        beside.replace(self.state)

    def learn(self, batch: Batch) -> int:
        factor = rate(self.progress.step, self.steps)
        for optimizer, base in zip(self.optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            heads = objective.run(self.model, batch, drafts=True)
        total, each = objective.loss(heads)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.optimizers[1].param_groups[0]["params"], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        balance(self.model)
        self.losses = [0.95 * a + 0.05 * b if a else b for a, b in zip(self.losses, each, strict=True)]
        self.progress.step += 1
        return batch.rows.ids.numel()

    def chunks(self) -> Iterator[Batch]:
        """A chunk that was cut off by a stop is begun again: a few batches are then seen twice."""
        while self.progress.step < self.steps:
            number = self.progress.chunk
            yield from batches.chunk(number, self.encoder, TOKENS_PER_STEP, number < PLAIN_CHUNKS)
            self.progress.chunk += 1

    def go(self, every: int) -> None:
        quiz = batches.exam(self.encoder, 16, 16_384)
        seen, began, before = 0, time.monotonic(), self.progress.seconds
        for batch in self.chunks():
            if self.progress.step >= self.steps:
                break
            seen += self.learn(batch)
            self.progress.seconds = before + time.monotonic() - began
            if self.progress.step % 20 == 0:
                self.say(seen / (time.monotonic() - began))
            if self.progress.step % every == 0:
                self.quiz(quiz)
                self.keep()

    def say(self, speed: float) -> None:
        left = self.progress.seconds / self.progress.step * (self.steps - self.progress.step)
        heads = " ".join(f"{x:.3f}" for x in self.losses)
        print(f"step {self.progress.step}/{self.steps}  loss {heads}  {speed:,.0f} tok/s  {left / 60:.0f} min left", flush=True)

    def quiz(self, exam: list[Batch]) -> objective.Marks:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            marks = objective.examine(self.model, exam)
        scores = {skill: marks.score(skill) for skill in batches.WEIGHTS}
        accepted = [marks.acceptance(k) for k in range(self.model.shape.mtp_layers)]
        self.progress.history.append({"step": self.progress.step, **scores})
        listed = " ".join(f"{skill} {score:.0%}" for skill, score in scores.items())
        print(f"  held-out: {listed}  accepted {' / '.join(f'{a:.2f}' for a in accepted)}", flush=True)
        return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2_400)
    parser.add_argument("--out", type=Path, default=checkpoint.HOME)
    parser.add_argument("--state", type=Path, default=Path(".training/step-tiny.pt"), help="where a stopped run goes on from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quiz-every", type=int, default=100, help="steps between held-out quizzes, each kept as a state")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(options.steps, options.state)
    run.go(options.quiz_every)
    run.keep()
    checkpoint.save(run.model, run.tokenizer, options.out)
    marks = run.quiz(batches.exam(run.encoder, 100, 16_384, first=1_000))
    report = {
        "steps": run.progress.step, "minutes": round(run.progress.seconds / 60, 1),
        "held_out": {skill: marks.score(skill) for skill in batches.WEIGHTS},
        "accepted": [marks.acceptance(k) for k in range(run.model.shape.mtp_layers)],
    }
    (options.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
