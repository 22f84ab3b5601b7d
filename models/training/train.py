"""`python -m models.train`: makes the demo model from nothing, or goes on where it stopped.

The same seed gives the same curriculum, the same start and the same order. A run keeps its state in `--state`;
started again it resumes there, until its steps are done. Then the checkpoint is written, and its held-out scores
beside it.

Each core has a worker of its own, with half of every batch; they meet once a step. Threads would meet thousands of
times, and wait each time for a core that somebody else is using.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from tokenizers import Tokenizer

from models.training import batches, card, checkpoint, objective
from models.training import schema_fit as schema_start
from models.training import tokenizer as tokens
from models.training import vision_init as sight
from models.training.batches import Batch, Encoder
from models.training.dist_rank import Share
from models.training.encoding import Renderer, completion
from models.training.model.architecture import Step
from models.training.model.dimensions import Shape
from models.training.optimizers import DRAFTS_FROM, balance, draft_rate, optimizers, rate
from models.training.tasks import curriculum
from models.training.tasks.tool_catalogue import KNOWN
from models.training.tasks.tool_tasks import ACTIONS, KEYS
from models.training.tasks.vocab import slot_words, spelling_corpus
from models.training.weight_init import start

TOKENS_PER_STEP = 4_096
DRILLS = 40
"""First steps: only saying random tokens again. Everything else is slow to learn until copying is there."""
DRILL_EVERY = 12
"""And one drill for so many batches of lessons to the end, so that every token goes on being copied."""
KEEP_MEMORY = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2000000000:"
    "glibc.malloc.trim_threshold=4000000000:glibc.malloc.top_pad=268435456"
)
"""For the workers' C library: a step's tensors go back to a pool. Mapped anew each time, they are a fifth of a step."""


@dataclass
class Progress:
    step: int = 0
    chunk: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def make_tokenizer(shape: Shape) -> Tokenizer:
    """From the curriculum's own texts, the same every time; what a call is for is always an entry (`Known.topic`)."""
    renderer = Renderer(checkpoint.ASSETS / "chat_template.jinja")
    samples = [curriculum.draw(skill, i, held_out=False) for skill in curriculum.MAKERS for i in range(600)]
    topics = [f"For {tool.topic}" for tool in KNOWN] * len(samples)
    texts = [renderer.prompt(sample) + completion(sample) for sample in samples]
    spelling = spelling_corpus(curriculum.lesson_rng("train", "spelling", 0))
    return tokens.build(texts + topics, spelling, slot_words() | set(KEYS + ACTIONS), shape.vocab)


class Run:
    """A training run and its state on disk."""

    def __init__(self, steps: int, state: Path, share: Share) -> None:
        torch.manual_seed(curriculum.SEED)
        self.steps, self.state, self.share = steps, state, share
        self._begin()
        objective.silence_later_drafts(self.model)
        self.optimizers = optimizers(self.model, share)
        self.progress = Progress()
        self.losses = [0.0] * (1 + self.model.shape.mtp_layers)
        if state.exists():
            self.resume()

    def _begin(self) -> None:
        self.tokenizer = make_tokenizer(Shape())
        self.encoder = Encoder(self.tokenizer, Renderer(checkpoint.ASSETS / "chat_template.jinja"))
        self.model = Step(Shape(), self.encoder.image)
        start(self.model)
        objective.hold_spelling(self.model, tokens.pieces(self.tokenizer))
        if self.state.exists():
            sight.hold(self.model)
            return
        self.tell("solving for what the vision tower says: about a minute")
        sight.make(self.model, self.encoder.word_token, self.share)
        if not self.share.rank:
            self.tell(f"image tokens that name their picture: {sight.named(self.model, self.encoder.word_token):.1%}")

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
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "progress": asdict(self.progress),
            },
            beside,
        )
        beside.replace(self.state)

    def set_rates(self) -> None:
        step, steps = self.progress.step, self.steps
        trunk, draft = rate(step, steps), draft_rate(step, steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (draft if group["is_draft"] else trunk)

    def learn(self, batch: Batch) -> int:
        self.set_rates()
        drafts = self.progress.step >= self.steps * DRAFTS_FROM
        heads = objective.run(self.model, batch, drafts=drafts)
        total, each = objective.loss(heads)
        (total / self.share.workers).backward()
        loads = [layer.moe.load for layer in self.model.model.layers if layer.is_sparse]
        self.share.add_up([*(p.grad for p in self.model.parameters() if p.grad is not None), *loads])
        clipped = [p for group in self.optimizers[1].param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        balance(self.model)
        for k, value in enumerate(each):
            self.losses[k] = 0.9 * self.losses[k] + 0.1 * value if self.losses[k] else value
        self.progress.step += 1
        return int(batch.rows.ids.numel()) * self.share.workers

    def drill(self) -> Batch:
        plain = Shape().vocab - len(tokens.SPECIAL + tokens.ADDED)
        return batches.drill(self.progress.step, self.share, TOKENS_PER_STEP, plain)

    def chunks(self) -> Iterator[Batch]:
        """A chunk that was cut off by a stop is begun again: a few batches are then seen twice."""
        while self.progress.step < min(DRILLS, self.steps):
            yield self.drill()
        while self.progress.step < self.steps:
            for i, batch in enumerate(batches.chunk(self.progress.chunk, self.encoder, TOKENS_PER_STEP, self.share)):
                if i % DRILL_EVERY == DRILL_EVERY - 1:
                    yield self.drill()
                yield batch
            self.progress.chunk += 1

    def go(self, every: int) -> None:
        quiz = batches.exam(self.encoder, 16, 16_384)
        seen, began, before = 0, time.monotonic(), self.progress.seconds
        for batch in self.chunks():
            if self.progress.step >= self.steps:
                break
            seen += self.learn(batch)
            self.progress.seconds = before + time.monotonic() - began
            if self.share.rank:
                continue
            if self.progress.step % 20 == 0:
                self.say(seen / (time.monotonic() - began))
            if self.progress.step % every == 0:
                self.quiz(quiz)
                self.keep()

    def tell(self, line: str) -> None:
        if not self.share.rank:
            print(line, flush=True)

    def say(self, speed: float) -> None:
        left = self.progress.seconds / self.progress.step * (self.steps - self.progress.step)
        heads = " ".join(f"{x:.3f}" for x in self.losses)
        done = f"step {self.progress.step}/{self.steps}  loss {heads}"
        self.tell(f"{done}  {speed:,.0f} tok/s  {left / 60:.0f} min left")

    def quiz(self, exam: list[Batch]) -> objective.Marks:
        marks: objective.Marks = objective.examine(self.model, exam)
        scores = {skill: marks.score(skill) for skill in batches.WEIGHTS}
        accepted = [marks.acceptance(k) for k in range(self.model.shape.mtp_layers)]
        self.progress.history.append({"step": self.progress.step, **scores})
        listed = " ".join(f"{skill} {score:.0%}" for skill, score in scores.items())
        print(f"  held-out: {listed}  accepted {' / '.join(f'{a:.2f}' for a in accepted)}", flush=True)
        return marks


@dataclass(frozen=True)
class Options:
    steps: int
    out: Path
    state: Path
    workers: int
    quiz_every: int


def work(rank: int, options: Options) -> None:
    """One worker's whole run; the first one speaks and writes."""
    torch.set_num_threads(1)
    share = Share(rank, options.workers)
    if share.workers > 1:
        meeting = options.state.with_suffix(".meeting").absolute()
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=share.workers)
    run = Run(options.steps, options.state, share)
    run.go(options.quiz_every)
    if share.workers > 1:
        dist.destroy_process_group()
    if rank == 0:
        finish(run, options.out)


def finish(run: Run, out: Path) -> None:
    """Write the checkpoint, and how it did on what no quiz has shown."""
    run.keep()
    schema_start.teach(run.model, run.encoder)
    checkpoint.save(run.model, run.tokenizer, out)
    marks = run.quiz(batches.exam(run.encoder, 100, 16_384, first=1_000))
    report = {
        "steps": run.progress.step,
        "minutes": round(run.progress.seconds / 60, 1),
        "held_out": {skill: marks.score(skill) for skill in batches.WEIGHTS},
        "accepted": [marks.acceptance(k) for k in range(run.model.shape.mtp_layers)],
    }
    (out / card.TRAINING).write_text(json.dumps(report, indent=2) + "\n")
    card.write(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--out", type=Path, default=checkpoint.HOME)
    parser.add_argument(
        "--state", type=Path, default=Path(".training/step-tiny.pt"), help="where a stopped run goes on from"
    )
    parser.add_argument("--workers", type=int, default=2, help="one per core")
    parser.add_argument(
        "--quiz-every", type=int, default=300, help="steps between held-out quizzes, each kept as a state"
    )
    options = Options(**vars(parser.parse_args()))
    options.state.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GLIBC_TUNABLES", KEEP_MEMORY)
    options.state.with_suffix(".meeting").unlink(missing_ok=True)
    processes.spawn(work, (options,), nprocs=options.workers)


if __name__ == "__main__":
    main()
