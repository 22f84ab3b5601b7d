"""Commands for the demo model: train it, evaluate a server that runs it, print training samples, write its card."""

import argparse
from pathlib import Path

from models.training import card, checkpoint, evaluate, train
from models.training.encoding import Renderer, completion
from models.training.tasks import curriculum


def print_samples(options: argparse.Namespace) -> None:
    renderer = Renderer(checkpoint.CHAT_TEMPLATE)
    for number in range(options.first, options.first + options.count):
        sample = curriculum.draw(options.kind, number, held_out=options.held_out)
        print(f"--- {options.kind} {number}\n{renderer.prompt(sample)}{completion(sample)}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in (("train", train), ("evaluate", evaluate)):
        command = commands.add_parser(name, help=(module.__doc__ or "").split("\n")[0], description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    sample = commands.add_parser("sample", help="Print samples of one kind of task as the model sees and writes them.")
    sample.add_argument("kind", choices=list(curriculum.TASK_GENERATORS))
    sample.add_argument("--count", type=int, default=1)
    sample.add_argument("--first", type=int, default=0, help="number of the first sample")
    sample.add_argument("--held-out", action="store_true", help="of the held-out split")
    sample.set_defaults(run=print_samples)
    write_card = commands.add_parser("card", help="Write README.md of a checkpoint from its training and evaluation.")
    write_card.add_argument("--folder", type=Path, default=checkpoint.HOME)
    write_card.set_defaults(run=lambda options: card.write(options.folder))
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
