"""`python -m bench start`: how long an engine takes to start, phase by phase, first without compiled kernels and then
with those of the start before.

Each start is a process of its own, as a replica's is: its imports count. The weights are in the page cache in all of
them, so what differs is what was compiled. With `--eager` the profile's own flags stay; without, the model is compiled
as on a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from serve_app.config.profile import ROOT, load_config
from serve_app.config.schema import AppConfig
from serve_app.engine.replica import EngineReplica
from serve_app.engine.start_watch import Unwatched
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.protocol.messages import decode_info

NOT_EAGER = {"enforce-eager": False}
DISABLES = "TORCH_COMPILE_DISABLE"


@dataclass(frozen=True)
class Start:
    """Seconds of each phase, by its name; CPU seconds of the process and of those that it has started."""

    name: str
    phases: dict[str, float]
    cpu_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(self.phases.values())


class Watch(Unwatched):
    """Only knows how long this process has run."""

    def __init__(self) -> None:
        self.process_s = time.time() - psutil.Process().create_time()


def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench start", description=__doc__.split(":")[1].strip())
    parser.add_argument("--profile", default="cpu-demo", help="a name in configs/ (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="with the profile's own flags")
    parser.add_argument("--starts", type=int, default=2, help="how many, the first one cold (default: %(default)s)")
    parser.add_argument("--once", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    config = config_of(options.profile, eager=options.eager)
    if options.once is not None:
        print(asyncio.run(start_once(config, options.once)))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        starts = [started(config, list(argv), folder, number) for number in range(options.starts)]
    print(as_text(starts))
    return 0


def config_of(profile: str, *, eager: bool) -> AppConfig:
    """That profile; compiled unless `eager`."""
    flags = {} if eager else NOT_EAGER
    return load_config({"profile": profile, "engine": {"flags": flags}})


def started(config: AppConfig, argv: list[str], folder: str, number: int) -> Start:
    """One start in a process of its own, which keeps compiled kernels in `folder`."""
    env = {**os.environ, **config.engine.env, "HOME": folder}
    if not bool(config.engine.flags.get("enforce-eager")):
        env.pop(DISABLES, None)
    command = [sys.executable, "-m", "bench", "start", *argv, "--once", folder]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Start("first" if number == 0 else f"next {number}", said["phases"], said["cpu_s"])


async def start_once(config: AppConfig, folder: str) -> str:
    """Start the engine here and stop it; its phases as JSON."""
    from serve_app.app import engine_factory  # Ray's modules take a while, as in a replica
    from serve_app.engine import compile_cache

    compile_cache.keep_compiled_kernels(folder)
    replica = EngineReplica("bench", engine_factory(config), WatchdogLimits(), starting=Watch())
    try:
        await replica.start()
        phases = decode_info(await replica.info()).capacity.start_phases
        children = psutil.Process().children(recursive=True)
        cpu_s = sum(sum(one.cpu_times()[:4]) for one in (psutil.Process(), *children))
    finally:
        await replica.stop()
    return json.dumps({"phases": phases, "cpu_s": cpu_s})


def as_text(starts: Sequence[Start]) -> str:
    """A table with a column for each start."""
    names = list(dict.fromkeys(phase for one in starts for phase in one.phases))
    rows = [[name, *(f"{one.phases.get(name, 0.0):.1f}" for one in starts)] for name in names]
    rows.append(["total, s", *(f"{one.total_s:.1f}" for one in starts)])
    rows.append(["CPU, s", *(f"{one.cpu_s:.1f}" for one in starts)])
    rows.append(["of the first", *(f"{one.total_s / starts[0].total_s:.2f}" for one in starts)])
    head = ["phase", *(one.name for one in starts)]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)
