"""`python -m serve_app serve` (what `make serve` runs): one command that reports when the service is up, and leaves
nothing behind.

    preflight -> `serve run deploy.yaml` as a child -> watch until the endpoint answers -> wait -> stop everything

`serve run` does not report what becomes of the application that it submits (ray#31168), so its state is polled and
printed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from serve_app.cli import client_env, preflight, serve_api, serve_status
from serve_app.cli.check import CheckStatus
from serve_app.cli.client_env import Endpoint
from serve_app.cli.serve_api import ApplicationDetails, StatusUnknown
from serve_app.cli.serve_child import ServeChild
from serve_app.config import deployment, fleet, hardware, machine, profile
from serve_app.config.deployment import Deployment
from serve_app.config.schema import ConfigError, flag

POLL_S, SETTLED_POLL_S = 0.5, 5.0
"""How often Serve is asked for its state while something changes, and while all is well. Each answer takes some 20 ms
of CPU time of the controller, two processes of the dashboard and this one."""

Say = Callable[[str], None]


class StartFailed(Exception):
    """The application cannot start. The message holds the replica's own error."""


def serve(file: Path, say: Say) -> int:
    """Run until Ctrl-C or SIGTERM. Returns the exit status of the process."""
    joins = machine.running_ray()
    say("Checks before anything starts:")
    ready = True
    for check in preflight.checks(file, joins):
        say(str(check))
        ready = ready and check.status is not CheckStatus.FAIL
    if not ready:
        say("\nNot started: see the lines marked FAIL.")
        return 1
    deploy = deployment.read(file)
    log = profile.ROOT / "build" / f"serve-{deploy.port}.log"
    ray = "a new local Ray" if joins is None else f"joining Ray at {joins}"
    say(f"\nStarting ({ray}); the whole log is in {log}")
    return asyncio.run(run(deploy, serve_command(file, joins), owns_ray=joins is None, log=log, say=say))


def serve_command(file: Path, joins: str | None) -> list[str]:
    """`serve run`, in a Ray of its own or in the one that runs."""
    program = Path(sys.executable).with_name("serve")
    return [str(program), "run", "--address", joins or "local", str(file.resolve())]


async def run(deploy: Deployment, command: Sequence[str], *, owns_ray: bool, log: Path, say: Say) -> int:
    """Start the command, watch the deployment, and stop everything on a signal. Returns an exit status."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    began_s = time.monotonic()

    def stamped(line: str) -> None:
        say(f"{time.monotonic() - began_s:6.1f} s  {line}")

    try:
        async with ServeChild(command, owns_ray=owns_ray, log=log, say=stamped) as child:
            await _until_stopped(deploy, child, stop, stamped)
            say("\nStopping ...")
            stop.clear()
            await child.interrupt(stop)
    except StartFailed as error:
        say(f"\nFAILED: {error}\n\nThe whole log: {log}")
        return 1
    finally:
        holder = machine.port_holder(deploy.host, deploy.port)
        say("Stopped." if holder is None else f"Stopped, but port {deploy.port} is held by {holder}.")
    return 0


async def _until_stopped(deploy: Deployment, child: ServeChild, stop: asyncio.Event, say: Say) -> None:
    """Returns when asked to stop. Raises `StartFailed`."""
    tasks = [
        asyncio.create_task(stop.wait(), name="stop"),
        asyncio.create_task(child.ended(), name="child"),
        asyncio.create_task(_watch(deploy, child, say), name="watch"),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
        if not stop.is_set():
            raise StartFailed("\n".join(["`serve run` ended by itself. Its last words:", *child.tail]))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(deploy: Deployment, child: ServeChild, say: Say) -> None:
    """Print the progress of the start and, once the endpoint answers, how to use it; then changes. Raises
    `StartFailed`."""
    state, answers, told = ApplicationDetails(), False, ""
    while True:
        now = await _state(child.dashboard, deploy.application) or state
        for line in serve_status.changes(state, now):
            say(line)
        state, error = now, serve_status.error_of(now)
        if state.status == "DEPLOY_FAILED":
            raise StartFailed(f"{serve_status.essence(error)}\n\nIn full:\n{error}")
        if state.status == "RUNNING" and not answers:
            endpoint = await asyncio.to_thread(find_endpoint, deploy)
            answers = endpoint is not None
            if endpoint is not None:
                say(f"answers\n{client_env.banner(endpoint, child.dashboard)}")
            else:
                error = error or "\n".join(await asyncio.to_thread(refused_replicas, deploy))
        if error and error != told:
            say(serve_status.essence(error))
        told = error
        await asyncio.sleep(SETTLED_POLL_S if answers and serve_status.is_settled(state) else POLL_S)


async def _state(dashboard: str | None, application: str) -> ApplicationDetails | None:
    if dashboard is not None:
        with contextlib.suppress(StatusUnknown):
            details = await asyncio.to_thread(serve_api.fetch, dashboard, 5.0)
            return details.applications.get(application, ApplicationDetails())
    return None


def find_endpoint(deploy: Deployment) -> Endpoint | None:
    """The endpoint, if it is healthy and lists its model, or requires a key for that."""
    endpoint = expected_endpoint(deploy)
    if _get(f"{endpoint.url()}/health")[0] != 200:
        return None
    status, body = _get(f"{endpoint.url()}/v1/models")
    if endpoint.needs_key and status == 401:
        return endpoint
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return Endpoint(deploy.host, deploy.port, str(json.loads(body)["data"][0]["id"]), endpoint.needs_key)
    return None


def refused_replicas(deploy: Deployment) -> list[str]:
    """The endpoint's reasons why some replicas get nothing: they run another version."""
    body = _get(f"{expected_endpoint(deploy).url()}/")[1]
    with contextlib.suppress(ValueError):
        told = json.loads(body)
        refused = told.get("refused_replicas") if isinstance(told, dict) else None
        return [str(why) for why in refused] if isinstance(refused, list) else []
    return []


def expected_endpoint(deploy: Deployment) -> Endpoint:
    """The endpoint by the configuration; in a cluster, `auto` may choose a profile with another model name."""
    try:
        config = fleet.load(deploy.args, [hardware.this_machine()]).ingress
    except ConfigError:  # `auto` on a head without GPUs, in a cluster that has them
        return Endpoint(deploy.host, deploy.port, "step3p7-flash", needs_key=False)
    length = flag(config.engine.flags, "max-model-len")
    context = (
        {"context_tokens": length} if isinstance(length, int) else {}
    )  # `auto`: what the cache holds, once started
    return Endpoint(deploy.host, deploy.port, config.model.served_name, config.ingress.keys_file is not None, **context)


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # our own endpoint, over http
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""
