"""`python -m bench simulate`: replays a trace against the service over fake engines, and through the simulator."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bench.servers import Server, Servers, StartFailed, ours
from bench.simulate.replica_watch import ReplicaWatch
from bench.simulate.workload import Workload
from serve_app.config.profile import ROOT
from serve_app.simulate import compare, trace
from serve_app.simulate.engine_model import EngineSpec
from serve_app.simulate.fleet_model import FleetSpec, SimulationResult, simulate
from serve_app.simulate.policies import ServeDelays, utilization_scaler
from serve_app.simulate.trace import Recording

TOKENIZER = ROOT / "models" / "step-tiny" / "tokenizer.json"
DASHBOARD = re.compile(r"View the dashboard at.*?(\d+\.\d+\.\d+\.\d+:\d+)")
RUN_LIMIT_S = 900.0

ENGINE = EngineSpec(
    prefill_tokens_per_s=1500.0,
    gap_s=0.05,
    tokens_per_step=3,
    max_num_seqs=8,
    max_num_batched_tokens=256,
    kv_cache_tokens=65_536,
    start_s=8.0,
)
TARGET_LOAD, UPSCALE_DELAY_S, DOWNSCALE_DELAY_S, MAX_REPLICAS = 0.6, 3.0, 30.0, 3


@dataclass(frozen=True)
class RealRun:
    """What a run has left: its access log, and what was counted beside it."""

    recording: Recording
    replica_s: float
    start_s: float
    changes: list[tuple[float, int]]
    """How many replicas there were from when on, in seconds after the first request."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if the model is near, 1 if not or if nothing could be run."""
    options = _parser().parse_args(argv)
    options.logs.mkdir(parents=True, exist_ok=True)
    try:
        real = _real_run(Workload(duration_s=options.duration_s, seed=options.seed), options.logs)
    except (StartFailed, subprocess.SubprocessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = _modelled(real)
    found = compare.comparisons(real.recording.served, result, real.replica_s)
    title = f"{len(result.requests)} requests; an engine took {real.start_s:.1f} s to start"
    Console(width=100).print(compare.as_table(title, found))
    for event in result.scale_events:
        print(f"model: {event.before} -> {event.after} at {event.at_s:.0f} s")
    print(f"real: {', '.join(f'{number} at {at_s:.0f} s' for at_s, number in real.changes)}")
    return 0 if all(one.is_near for one in found) else 1


def _modelled(real: RealRun) -> SimulationResult:
    tick_s = min(10.0, max(UPSCALE_DELAY_S / 3, 0.5))
    fleet = FleetSpec(replace(ENGINE, start_s=real.start_s), max_replicas=MAX_REPLICAS, tick_s=tick_s)
    delays = ServeDelays(3 * tick_s, UPSCALE_DELAY_S, DOWNSCALE_DELAY_S)
    return simulate(real.recording.requests, fleet, utilization_scaler(TARGET_LOAD, delays))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench simulate",
        description="Replays a trace against the service over fake engines, and compares the simulator with it.",
    )
    parser.add_argument("--duration-s", type=float, default=200.0, help="of the trace (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "bench-simulate", help="folder for logs")
    return parser


def _settings() -> Mapping[str, object]:
    fake = {
        "plain_token_ids": [32, 57],
        "answer_tokens": [2000, 2000],
        "max_model_len": 8192,
        "gap_s": ENGINE.gap_s,
        "tokens_per_step": ENGINE.tokens_per_step,
        "max_num_seqs": ENGINE.max_num_seqs,
        "prefill_tokens_per_s": ENGINE.prefill_tokens_per_s,
        "max_num_batched_tokens": ENGINE.max_num_batched_tokens,
        "kv_cache_tokens": ENGINE.kv_cache_tokens,
        "prefix_caching": ENGINE.prefix_caching,
        "start_s": ENGINE.start_s,
    }
    replicas = {
        "min": 1,
        "max": MAX_REPLICAS,
        "cpus_per_replica": 0.1,
        "target_load": TARGET_LOAD,
        "upscale_delay_s": UPSCALE_DELAY_S,
        "downscale_delay_s": DOWNSCALE_DELAY_S,
    }
    ingress = {"max_replicas": 1, "cpus_per_replica": 0.25}
    return {"engine": {"kind": "fake", "fake": fake}, "replicas": replicas, "ingress": ingress}


def _real_run(work: Workload, logs: Path) -> RealRun:
    file = logs / "trace.jsonl"
    trace.write_trace(file, work.requests())
    with Servers(logs, _settings()) as servers:
        server = servers.start(ours("simulate"))
        with ReplicaWatch(_dashboard(server)) as watch:
            _replay(server, file, logs)
        recording = trace.read_access_log(_copied_logs(server, logs))
    begin_s = recording.begin_unix_s
    end_s = max(one.request.arrival_s + one.total_s for one in recording.served)
    starts_s = watch.starts_s()
    return RealRun(
        recording,
        watch.replica_s(begin_s, begin_s + end_s),
        sum(starts_s) / len(starts_s) if starts_s else ENGINE.start_s,
        [(at_s - begin_s, number) for at_s, number in watch.changes()],
    )


def _dashboard(server: Server) -> str:
    found = DASHBOARD.search(server.log.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        raise StartFailed(f"{server.log} does not say where Ray's dashboard is")
    return f"http://{found[1]}"


def _replay(server: Server, file: Path, logs: Path) -> None:
    command = [sys.executable, "-m", "loadtest", "run", "--url", f"http://127.0.0.1:{server.port}", "--quiet"]
    command += ["--trace", str(file), "--tokenizer", str(TOKENIZER), "--workers", "1", "--no-server-metrics"]
    command += ["--json", str(logs / "loadtest.json")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=RUN_LIMIT_S, stdout=subprocess.DEVNULL)


def _copied_logs(server: Server, logs: Path) -> list[Path]:
    """The logs of Ray's workers, in the folder for logs: their own goes with the service."""
    folder = Path(server.processes()[0].environ()["RAY_TMPDIR"])
    found = []
    for number, log in enumerate(sorted(folder.glob("**/session_2*/logs/worker-*.err"))):
        if b"serve_app.access: request" in (text := log.read_bytes()):
            found.append(logs / f"access-{number}.log")
            found[-1].write_bytes(text)
    return found
