"""Evaluates a running server: asks the held-out samples through the OpenAI API and compares the answers.

Requests are greedy. Thoughts must be there; answer and tool calls must be those of the task. Draft acceptance comes
from vLLM's counters before and after; behind a proxy, `--metrics-url` says where they are.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from models.training.eval_client import Answer, EvalClient
from models.training.tasks import curriculum
from models.training.tasks.sample import Sample, ToolCall

FIRST_NUMBER = 1_000
"""Number of the first sample: training scores itself on lower ones."""
CONCURRENT_REQUESTS = 16


@dataclass(frozen=True)
class Figures:
    """Results of an evaluation. The model card is made from them, so the names are a file format."""

    scores: dict[str, float]
    """Share of right answers by kind of task."""
    acceptance: list[float]
    """By position: share of drafts whose tokens up to there were accepted. Empty without drafting."""
    tokens_per_draft: float | None
    stream_tokens_per_s: float | None


def typed_call(call: ToolCall, sample: Sample) -> tuple[str, object]:
    """Name and arguments as the tool parser returns them: converted by the types in the tool's schema."""
    json_types: dict[str, str] = {}
    for tool in sample.tools:
        match tool["function"]:
            case {"name": call.name, "parameters": {"properties": dict(fields)}}:
                json_types = {key: field["type"] for key, field in fields.items()}
    arguments = {
        key: value if json_types.get(key, "string") == "string" else json.loads(value)
        for key, value in call.arguments.items()
    }
    return call.name, arguments


def is_right(sample: Sample, answer: Answer) -> bool:
    """Whether there is a thought, whatever it says, and answer and calls are those of the task."""
    task = sample.task
    wanted = [typed_call(call, sample) for call in task.calls]
    return bool(answer.thought) and answer.text == task.answer.strip() and answer.calls == wanted


def acceptance(before: dict[str, float], after: dict[str, float]) -> tuple[list[float], float | None]:
    """Acceptance by draft position, and tokens per step, between two readings of the counters."""
    drafts = after.get("num_drafts", 0.0) - before.get("num_drafts", 0.0)
    if not drafts:
        return [], None
    keys = sorted(k for k in after if k.startswith("num_accepted_tokens_per_pos/"))
    rates = [(after[k] - before.get(k, 0.0)) / drafts for k in keys]
    return rates, 1.0 + sum(rates)


def evaluate(
    client: EvalClient, samples_per_task: int, streams: int, stream_tokens: int
) -> tuple[Figures, dict[str, Answer]]:
    """Ask all samples; then, if `streams` is not zero, time so many concurrent streams.

    Returns the figures, and the answers by `KIND/NUMBER`.
    """
    samples = {
        f"{kind}/{i}": curriculum.draw(kind, FIRST_NUMBER + i, held_out=True)
        for kind in curriculum.TASK_GENERATORS
        for i in range(samples_per_task)
    }
    before = client.draft_counters()
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        answers = dict(zip(samples, pool.map(client.ask, samples.values()), strict=True))
    rates, per_draft = acceptance(before, client.draft_counters())
    right: dict[str, list[bool]] = {}
    for name, sample in samples.items():
        right.setdefault(sample.task.kind, []).append(is_right(sample, answers[name]))
    scores = {kind: sum(each) / len(each) for kind, each in right.items()}
    speed = measure_speed(client, streams, stream_tokens) if streams else None
    return Figures(scores, rates, per_draft, speed), answers


def measure_speed(client: EvalClient, streams: int, stream_tokens: int) -> float:
    """Output tokens per second over `streams` concurrent requests of `stream_tokens` tokens each."""
    start_s = time.monotonic()
    with ThreadPoolExecutor(streams) as pool:
        total = sum(pool.map(client.generate, [stream_tokens] * streams))
    return total / (time.monotonic() - start_s)


def show(figures: Figures) -> None:
    """Print the figures as Markdown."""
    print("| task | held-out, greedy |\n| --- | --- |")
    for kind, score in figures.scores.items():
        print(f"| {kind} | {score:.1%} |")
    if figures.acceptance:
        listed = " / ".join(f"{rate:.2f}" for rate in figures.acceptance)
        print(f"\nMTP acceptance by position: {listed}; {figures.tokens_per_draft:.2f} tokens per step")
    else:
        print("\nMTP is off: nothing was drafted")
    if figures.stream_tokens_per_s:
        print(f"Output: {figures.stream_tokens_per_s:,.0f} tokens/s")


def show_wrong(answers: dict[str, Answer], limit: int) -> None:
    """Print the first `limit` wrong answers beside the right ones."""
    for name, answer in answers.items():
        kind, number = name.split("/")
        sample = curriculum.draw(kind, FIRST_NUMBER + int(number), held_out=True)
        if limit and not is_right(sample, answer):
            limit -= 1
            print(f"\n{name}: {sample.task.request!r}")
            print(f"  wanted {sample.thought!r} {sample.task.answer!r} {sample.task.calls}")
            print(f"  got    {answer.thought!r} {answer.text!r} {answer.calls}")


def count_differences(answers: dict[str, Answer], other: Path) -> int:
    """Number of answers that differ from those in the file of another run, with a line that says so."""
    saved = json.loads(other.read_text())
    differing = [name for name, a in answers.items() if json.loads(json.dumps(asdict(a))) != saved.get(name)]
    print(f"{len(answers) - len(differing)} of {len(answers)} answers are the same as in {other.name}", *differing[:10])
    return len(differing)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", required=True)
    parser.add_argument("--metrics-url", help="where vLLM's counters are, if not at URL/metrics")
    parser.add_argument("--model")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--each", type=int, default=100, help="held-out samples per task")
    parser.add_argument("--streams", type=int, default=16, help="concurrent streams for the speed; 0 skips it")
    parser.add_argument("--stream-tokens", type=int, default=512)
    parser.add_argument(
        "--enforce-schemas", action="store_true", help="send the schema of JSON tasks as response_format"
    )
    parser.add_argument("--answers", type=Path, help="write every answer to this file")
    parser.add_argument("--same-as", type=Path, help="compare with the answers file of another run; 1 if any differ")
    parser.add_argument("--figures", type=Path, help="write the figures to this file, for the model card")
    parser.add_argument("--server", default="vLLM", help="description of the server in the model card")
    parser.add_argument("--wrong", type=int, default=0, help="print so many wrong answers")


def run(options: argparse.Namespace) -> None:
    client = EvalClient(options.url, options.metrics_url, options.model, options.key, options.enforce_schemas)
    figures, answers = evaluate(client, options.each, options.streams, options.stream_tokens)
    show(figures)
    if options.wrong:
        show_wrong(answers, options.wrong)
    if options.figures:
        content = {"each": options.each, "server": options.server, **asdict(figures)}
        options.figures.write_text(json.dumps(content, indent=2) + "\n")
    if options.answers:
        options.answers.write_text(json.dumps({name: asdict(a) for name, a in answers.items()}))
    if options.same_as and count_differences(answers, options.same_as):
        sys.exit(1)
