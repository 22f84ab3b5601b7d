"""`python -m serve_app rehearse`: from the flags to the exit status.

    read the machine -> dummy model -> start -> requests -> load -> kill -> stop -> verdict, JSON and page

Whatever ends it (Ctrl-C, a start that fails), the service is stopped and the measurements so far are reported.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from loadtest.report.files import write_text
from serve_app.config import deployment, hardware
from serve_app.config.profile import ROOT
from serve_app.rehearse import facts, measure, page, setup, verdict
from serve_app.rehearse.facts import RehearsalFacts
from serve_app.rehearse.service import NotStarted, Say, Service, serve_command
from serve_app.rehearse.setup import ACCEPTED, RehearsalPlan

SPARE_START_S = 600.0
"""For the checks, Ray and Serve, besides the engine's own limit: 190 s were seen on a busy machine of two cores."""


def run(given: argparse.Namespace, say: Say) -> int:
    """The whole command. 0: ready; 1: not ready. Raises `ConfigError` where nothing can be rehearsed."""
    plan = setup.plan(deployment.read(given.file), given)
    out = plan.deploy.parent
    for warning in plan.warnings:
        say(f"NOTE  {warning}")
    say(f"Rehearsing {plan.profile} with dummy weights; everything goes to {out}")
    found = RehearsalFacts(
        profile=plan.profile,
        is_demo=plan.is_demo,
        ranks=plan.ranks,
        machine=hardware.describe([hardware.this_machine()]).removeprefix("1 node ").removeprefix("of "),
        when=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        engines=plan.config.replicas.needed,
        warnings=plan.warnings,
        memory=measure.plan_memory(plan.config),
    )
    with _interruptible():
        try:
            _rehearse(plan, given.load_s, out, found, say)
        except KeyboardInterrupt:
            found.interrupted = True
        finally:
            shutil.rmtree(plan.model, ignore_errors=True)
    return _report(found, out, say)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end it as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rehearse(plan: RehearsalPlan, load_s: float, out: Path, found: RehearsalFacts, say: Say) -> None:
    service = Service(serve_command(plan.deploy), out / "start.log", say)
    log = ROOT / "build" / f"serve-{plan.port}.log"
    log.unlink(missing_ok=True)
    try:
        with service:
            try:
                say("\nStart")
                service.until_it_answers(plan.config.engine.start_timeout_s + SPARE_START_S)
                found.answered = True
            except NotStarted as error:
                found.start_error = str(error)
            finally:
                found.phases = facts.phases(service.lines)
            if found.answered:
                measure.read_log(found, log)
                _, found.memory.used_started = measure.gpu_memory()
                _ask(plan, service, load_s, out, found, say)
            say("\nStop")
    finally:
        found.stop_s, found.left_over = service.stop_s, service.left_over
        found.memory.used_after = measure.memory_after(found.memory.used_before)
        if log.is_file():
            shutil.copyfile(log, out / "service.log")


def _ask(plan: RehearsalPlan, service: Service, load_s: float, out: Path, found: RehearsalFacts, say: Say) -> None:
    say("\nRequests")
    found.requests = measure.three_requests(plan)
    for request in found.requests:
        say(f"  {request.kind:<6} {'ok' if request.ok else 'WRONG'}  {request.seconds:.1f} s  {request.said}")
    say(f"\nLoad ({load_s:g} s, and until its last answer ends)")
    load = measure.load(plan, service.dashboard, load_s, out, say)
    if isinstance(load, str):
        found.load_error = load
    else:
        found.load = load
    _, found.memory.used_loaded = measure.gpu_memory()
    say("\nAn engine core is killed under open streams")
    found.kill = measure.kill(plan, service.dashboard, out, say)


def _report(found: RehearsalFacts, out: Path, say: Say) -> int:
    findings = verdict.judge(found, ACCEPTED)
    ready, said = verdict.summary(found, findings)
    say("")
    for finding in findings:
        say(f"{finding.level.value:<5} {finding.what:<15} {finding.measured}")
        if finding.change:
            say(f"{'':<21} -> {finding.change}")
    whole = {"ready": ready, "verdict": said, "findings": findings, "facts": found}
    text = msgspec.json.format(msgspec.json.encode(whole, enc_hook=str), indent=1).decode()
    write_text(out / "rehearsal.json", text)
    write_text(out / "rehearsal.html", page.as_html(found, findings, said, has_load_page=(out / "load.html").is_file()))
    say(f"\n{said}\n{out / 'rehearsal.html'} shows it; rehearsal.json has the figures, service.log the service's words")
    return 0 if ready else 1
