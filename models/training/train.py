"""Trains the demo model from random weights, or continues from a saved state.

The seed fixes curriculum, initial weights and order. A run saves its state to `--state`, and a later run with the same
file continues there. At the end the checkpoint is written with its held-out scores and its model card.

Each core has a process of its own with a part of every batch, synchronised once per step. Threads would synchronise
thousands of times per step, and wait each time for a core that another program uses.
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
from models.training.batches import Batch
from models.training.dist_rank import DistRank
from models.training.encoding import Encoder, Renderer, make_tokenizer
from models.training.model.architecture import StepModel
from models.training.model.dimensions import ModelDimensions
from models.training.optimizers import MTP_FROM, balance_routers, make_optimizers, mtp_rate, trunk_rate
from models.training.schema_fit import SAMPLES, fit_object_start
from models.training.tasks import curriculum
from models.training.tokenizer import ADDED, SPECIAL, spelling_pieces
from models.training.vision_init import freeze_vision, init_vision, vision_accuracy
from models.training.weight_init import init_weights

TOKENS_PER_STEP = 4_096
COPY_STEPS = 40
"""First steps, with random copy batches only: all tasks are learnt slowly before copying works."""
COPY_EVERY = 12
"""Later, one random copy batch for so many of the tasks, so that every token goes on being copied."""
LOG_EVERY = 20
EVAL_SAMPLES, EVAL_BATCH_TOKENS = 16, 16_384
"""Held-out samples of each kind of task during training, and tokens of a batch of them."""
FINAL_SAMPLES, FINAL_FIRST_NUMBER = 100, 1_000
"""At the end: other samples, the ones that `evaluate` asks for."""
GLIBC_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2000000000:"
    "glibc.malloc.trim_threshold=4000000000:glibc.malloc.top_pad=268435456"
)
"""Lets malloc keep freed memory. Mapping a step's tensors anew each time is a fifth of the step."""


@dataclass
class Progress:
    """What a state file has beside weights and optimizers."""

    step: int = 0
    chunk: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    """Held-out scores by kind of task, with the step."""


class TrainingRun:
    """One rank's training run. All ranks have the same weights; rank 0 prints and saves."""

    def __init__(self, steps: int, state: Path, rank: DistRank, tokenizer: Tokenizer) -> None:
        torch.manual_seed(curriculum.SEED)
        self.steps, self.state, self.rank, self.tokenizer = steps, state, rank, tokenizer
        self.encoder = Encoder(tokenizer, Renderer(checkpoint.CHAT_TEMPLATE))
        self._init_model()
        objective.disable_later_mtp_attention(self.model)
        self.optimizers = make_optimizers(self.model, rank)
        self.progress = Progress()
        self.losses = [0.0] * (1 + self.model.dims.mtp_layers)
        if state.exists():
            self.load_state()

    def _init_model(self) -> None:
        self.model = StepModel(ModelDimensions(), self.encoder.image)
        init_weights(self.model)
        objective.freeze_embeddings(self.model, spelling_pieces(self.tokenizer))
        if self.state.exists():
            freeze_vision(self.model)
            return
        self.log("constructing the vision encoder: about a minute")
        init_vision(self.model, self.encoder.word_token, self.rank)
        if self.rank.rank == 0:
            accuracy = vision_accuracy(self.model, self.encoder.word_token)
            self.log(f"image tokens with the right colour and shape: {accuracy:.1%}")

    def load_state(self) -> None:
        saved = torch.load(self.state, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.progress = Progress(**saved["progress"])

    def save_state(self) -> None:
        """Write to another file and rename it, so that a killed run leaves a complete state."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state.with_suffix(".part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "progress": asdict(self.progress),
            },
            partial,
        )
        partial.replace(self.state)

    def set_rates(self) -> None:
        step, steps = self.progress.step, self.steps
        trunk, mtp = trunk_rate(step, steps), mtp_rate(step, steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (mtp if group["is_draft"] else trunk)

    def train_step(self, batch: Batch) -> int:
        """One update of the weights. Returns the tokens, padding included, of all ranks."""
        self.set_rates()
        with_mtp = self.progress.step >= self.steps * MTP_FROM
        total, each = objective.loss(objective.predict(self.model, batch, with_mtp=with_mtp))
        (total / self.rank.world_size).backward()
        loads = [layer.moe.load for layer in self.model.model.layers if layer.is_sparse]
        self.rank.all_reduce_sum([*(p.grad for p in self.model.parameters() if p.grad is not None), *loads])
        clipped = [p for group in self.optimizers[1].param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        balance_routers(self.model)
        for k, value in enumerate(each):
            self.losses[k] = 0.9 * self.losses[k] + 0.1 * value if self.losses[k] else value
        self.progress.step += 1
        return int(batch.inputs.ids.numel()) * self.rank.world_size

    def copy_batch(self) -> Batch:
        vocab_size = self.model.dims.vocab - len(SPECIAL + ADDED)
        return batches.random_copy_batch(self.progress.step, self.rank, TOKENS_PER_STEP, vocab_size)

    def batches(self) -> Iterator[Batch]:
        """Batches until the run's steps are done. A resumed run starts with its chunk's first batch again."""
        while self.progress.step < min(COPY_STEPS, self.steps):
            yield self.copy_batch()
        while self.progress.step < self.steps:
            chunk = batches.training_chunk(self.progress.chunk, self.encoder, TOKENS_PER_STEP, self.rank)
            for i, batch in enumerate(chunk):
                if i % COPY_EVERY == COPY_EVERY - 1:
                    yield self.copy_batch()
                yield batch
            self.progress.chunk += 1

    def run(self, eval_every: int) -> None:
        """Train until the run's steps are done, with scores and a saved state every `eval_every` steps."""
        held_out = batches.eval_batches(self.encoder, EVAL_SAMPLES, EVAL_BATCH_TOKENS)
        tokens, start_s, earlier_s = 0, time.monotonic(), self.progress.seconds
        for batch in self.batches():
            if self.progress.step >= self.steps:
                break
            tokens += self.train_step(batch)
            elapsed_s = time.monotonic() - start_s
            self.progress.seconds = earlier_s + elapsed_s
            if self.rank.rank:
                continue
            if self.progress.step % LOG_EVERY == 0:
                self.log_progress(tokens / elapsed_s)
            if self.progress.step % eval_every == 0:
                self.score(held_out)
                self.save_state()

    def log(self, line: str) -> None:
        if self.rank.rank == 0:
            print(line, flush=True)

    def log_progress(self, tokens_per_s: float) -> None:
        left_s = self.progress.seconds / self.progress.step * (self.steps - self.progress.step)
        losses = " ".join(f"{x:.3f}" for x in self.losses)
        done = f"step {self.progress.step}/{self.steps}  loss {losses}"
        self.log(f"{done}  {tokens_per_s:,.0f} tok/s  {left_s / 60:.0f} min left")

    def score(self, held_out: list[Batch]) -> objective.EvalScores:
        """Score the model, and add the scores to the history."""
        result: objective.EvalScores = objective.score(self.model, held_out)
        scores = {kind: result.score(kind) for kind in batches.TASK_WEIGHTS}
        accepted = [result.acceptance(k) for k in range(self.model.dims.mtp_layers)]
        self.progress.history.append({"step": self.progress.step, **scores})
        listed = " ".join(f"{kind} {score:.0%}" for kind, score in scores.items())
        self.log(f"  held-out: {listed}  accepted {' / '.join(f'{a:.2f}' for a in accepted)}")
        return result

    def finish(self, out: Path, fit_samples: int = SAMPLES, eval_samples: int = FINAL_SAMPLES) -> None:
        """Save the state; write the checkpoint, its scores on samples that were not used before, and its card.

        Both sample counts are per kind of task.
        """
        self.save_state()
        fit_object_start(self.model, self.encoder, fit_samples)
        checkpoint.save(self.model, self.tokenizer, out)
        held_out = batches.eval_batches(self.encoder, eval_samples, EVAL_BATCH_TOKENS, first=FINAL_FIRST_NUMBER)
        result = self.score(held_out)
        report = {
            "steps": self.progress.step,
            "minutes": round(self.progress.seconds / 60, 1),
            "held_out": {kind: result.score(kind) for kind in batches.TASK_WEIGHTS},
            "accepted": [result.acceptance(k) for k in range(self.model.dims.mtp_layers)],
        }
        (out / card.TRAINING).write_text(json.dumps(report, indent=2) + "\n")
        card.write(out)


@dataclass(frozen=True)
class TrainingOptions:
    steps: int
    out: Path
    state: Path
    workers: int
    eval_every: int

    @property
    def rendezvous(self) -> Path:
        """The file through which the ranks find each other."""
        return self.state.with_suffix(".rendezvous").absolute()


def train_rank(rank_index: int, options: TrainingOptions) -> None:
    """The work of one process; rank 0 also writes the checkpoint."""
    torch.set_num_threads(1)
    rank = DistRank(rank_index, options.workers)
    if rank.world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{options.rendezvous}", rank=rank.rank, world_size=rank.world_size
        )
    tokenizer = make_tokenizer(ModelDimensions().vocab, Renderer(checkpoint.CHAT_TEMPLATE))
    training = TrainingRun(options.steps, options.state, rank, tokenizer)
    training.run(options.eval_every)
    if rank.world_size > 1:
        dist.destroy_process_group()
    if rank.rank == 0:
        training.finish(options.out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--out", type=Path, default=checkpoint.HOME, help="folder of the checkpoint")
    parser.add_argument(
        "--state", type=Path, default=Path(".training/step-tiny.pt"), help="where a stopped run continues from"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, one per core")
    parser.add_argument("--eval-every", type=int, default=300, help="steps between held-out scores and saved states")


def run(arguments: argparse.Namespace) -> None:
    options = TrainingOptions(arguments.steps, arguments.out, arguments.state, arguments.workers, arguments.eval_every)
    options.state.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GLIBC_TUNABLES", GLIBC_TUNABLES)
    options.rendezvous.unlink(missing_ok=True)
    processes.spawn(train_rank, (options,), nprocs=options.workers)
