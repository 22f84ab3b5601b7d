"""The blocks `pools` and `canary` of the configuration: parts of one fleet that differ in their hardware, or in what is
on trial."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from serve_app.config.section import Section

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
"""Part of a deployment's name and a label: lower-case letters, digits, dashes between them."""


class PartModel(Section):
    """What a part may change of the model: the same model's other checkpoint (FP8 beside BF16)."""

    source: str | None = None
    """The pool's checkpoint, in place of its profile's: the same model in another precision."""
    revision: str | None = None
    """Its branch, tag or commit."""


class PoolConfig(Section):
    """One pool: engines of one hardware layout. The application's other `args` hold for it, too; what stands here
    wins."""

    name: Name
    """Its name in the status, in logs, and in its deployment's name (`engine-<name>`)."""
    profile: str | None = None
    """A name in configs/ or a path. None: the application's `profile`."""
    model: PartModel = PartModel()
    """Another checkpoint of the same model: `source`, `revision`."""
    engine: dict[str, object] = {}
    """What is other than in the profile, as in the block `engine`."""
    replicas: dict[str, object] = {}
    """As the block `replicas`: above all `min` and `max`, which are the pool's own."""


class CanaryConfig(Section):
    """The trial of another engine configuration, as an application of its own beside the service
    (docs/operations.md): which share of the sessions it gets, and by what it is judged."""

    share: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of the sessions that go to the canary while it is judged."""
    for_s: PositiveFloat = 600.0
    """How long it is tried at least before it is promoted. A bad one is rolled back as soon as there is evidence."""
    min_requests: PositiveInt = 100
    """Fewest requests of the canary before a promotion. A verdict against it needs a tenth of them."""
    max_error_increase: Annotated[float, Field(gt=0, le=1)] = 0.01
    """How much higher its ratio of failed requests may be than the rest's."""
    max_ttft_ratio: Annotated[float, Field(gt=1)] = 1.2
    """How much longer its time to first token may be, as a ratio of the geometric means."""
    max_tpot_ratio: Annotated[float, Field(gt=1)] = 1.2
    """The same for the time per output token."""
    min_acceptance_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """How far its tokens per step, which say how many drafts are accepted, may fall below the rest's."""
