"""`build(args)`: the application of a canary, beside the service's (docs/operations.md).

Its `args` are the service's with what is on trial changed, and a block `canary`. It has engines and a judge, and no
endpoint: the ingresses of the service find it by its name, and send it its share.
"""

from __future__ import annotations

import os

from ray import serve

from serve_app.app import engine_deployments
from serve_app.cli import abort_serve_run
from serve_app.cli.preflight import checked_fleet
from serve_app.config import machine, vllm_device
from serve_app.config.fleet import CANARY, FleetPart
from serve_app.config.schema import ConfigError
from serve_app.ingress.canary import deployment


def build(args: dict[str, object]) -> serve.Application:
    """The application. Raises `ConfigError`, naming the line to change, for what cannot work."""
    vllm_device.use_no_device()
    try:
        fleet = checked_fleet(args)
        if fleet.ingress.canary is None:
            raise ConfigError(
                "args of the canary's application: the block `canary` is missing, e.g. `canary: {share: 0.05}`"
            )
        if len(fleet.parts) > 1:
            raise ConfigError(
                "args of the canary's application: `pools`: a canary has one layout; name it as `profile`"
            )
        engines = engine_deployments([FleetPart(CANARY, fleet.ingress)], canary=True)
    except ConfigError as error:
        if machine.RUN_MARK not in os.environ:
            abort_serve_run.end(str(error))
        raise
    return deployment.judge(fleet.ingress, engines[CANARY])
