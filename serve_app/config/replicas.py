"""The block `replicas` of the configuration: how many engines there are, where they run, when their number changes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from serve_app.config.memory import GPU_BYTES
from serve_app.config.section import Section, WrongKey
from serve_app.scaling import ScheduleRule, schedule_rule

MAX_QUEUED_REQUESTS = 512
"""Waiting requests of one engine, unless configured: at 20 s each (`router/admission.py`) and 256 slots, 40 s of
work."""

MAX_QUEUE_WAIT_S = 300.0
"""Longest wait for an engine, unless configured: what clients wait for an answer to begin, by their own timeouts, is
ten minutes at most (OpenAI's and Anthropic's SDKs)."""

IDLE_TO_ZERO_S = 900.0
"""Idle time before the last engine goes, unless configured: some starts of an engine long, so that a fleet that is in
use does not spend its time on starts."""

RAYS_OWN = {
    "CPU": "use `cpus_per_replica`",
    "GPU": "use `gpus_per_replica`",
    "memory": "it is not reserved here",
    "object_store_memory": "it is not reserved here",
}
"""Ray's resources that are no custom ones, and what to do instead."""


class ScheduleEntry(Section):
    """At least `min` engines from one time of day to another."""

    model_config = ConfigDict(validate_by_name=True)

    min: PositiveInt
    """Fewest engines then."""
    begin: str = Field(alias="from")
    """Time of day, in quotes: `"08:00"`."""
    end: str = Field(alias="to")
    """Time of day; not after `from` means the next day."""
    days: str = "mon-sun"
    """Days on which it begins: `mon-fri`, `sat,sun`."""
    timezone: str = "UTC"
    """Whose clock: `Europe/Berlin`."""

    @field_validator("begin", "end", mode="before")
    @classmethod
    def _is_in_quotes(cls, value: object) -> object:
        # YAML 1.1 reads 18:00 as a number of base 60.
        if isinstance(value, int):
            raise ValueError(f'write the time in quotes: "{value // 60:02}:{value % 60:02}"')  # noqa: TRY004  # pydantic's
        return value

    @model_validator(mode="after")
    def _words_are_known(self) -> ScheduleEntry:
        self.rule()
        return self

    def rule(self) -> ScheduleRule:
        """As the scaling policy takes it."""
        return schedule_rule(self.min, self.begin, self.end, self.days, self.timezone)

    def words(self) -> dict[str, str | int]:
        """As JSON takes it."""
        return self.model_dump(by_alias=True)


class ReplicasConfig(Section):
    """How many engines there are, and what each takes of the cluster."""

    min: NonNegativeInt = 1
    """Fewest engines. A single one cannot fail over: its requests then wait for its restart. With 0 the last engine
    goes after `idle_to_zero_s` without a request, and the next request waits for the start of one."""
    max: PositiveInt = 1
    """Most engines. Above `min`, their number follows the load."""
    initial: PositiveInt | None = None
    """Engines at the start, and after each change of the configuration; if not given, `min` at the start, but at least
    one: that an engine cannot start is then seen at once, and not by the first request."""
    gpu_budget: PositiveInt | None = None
    """Most GPUs of all engines together; with `max`, the lower one counts. No decision passes it."""
    schedule: tuple[ScheduleEntry, ...] = ()
    """Hours with more engines than `min`, in quotes: `[{from: "08:00", to: "18:00", min: 2, days: mon-fri, timezone:
    Europe/Berlin}]`. Needs `slo`."""
    gpus_per_replica: NonNegativeInt = 0
    """GPUs of one engine: the product of its parallel sizes. 0 is for CPU engines only."""
    cpus_per_replica: PositiveFloat = 1.0
    """Ray CPUs reserved by one engine (scheduling only; nothing is enforced)."""
    nodes_per_replica: PositiveInt = 1
    """Nodes that one engine spans. 1: vLLM's multiprocess executor. More: its Ray executor in a placement group."""
    label_selector: dict[str, str] = {}
    """Ray node labels that a replica asks for, e.g. `{ray.io/market-type: spot}`."""
    resources: dict[str, PositiveFloat] = {}
    """Custom Ray resources that a replica takes from its node."""
    accelerator_type: str | None = None
    """GPU model as Ray names it (`H100`, `H200`, `B200`, `A100` ...); replicas are placed on such nodes only."""
    surge: Literal["auto", 0, 1] = "auto"
    """Whether a replacement's new engine starts before an old one stops (1), which needs room for one more, or after it
    (0). `auto`: 1 where the cluster has that room when the configuration is deployed."""
    cluster_grows: bool = False
    """Whether the cluster adds nodes by itself (Ray's autoscaler, KubeRay). A start then waits for missing nodes
    instead of refusing."""
    target_load: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Utilization that autoscaling aims at: beyond it one more engine is started."""
    upscale_delay_s: NonNegativeFloat = 30.0
    """How long the load must ask for more engines before one is started."""
    downscale_delay_s: NonNegativeFloat | None = None
    """How long the load must allow fewer engines before one is stopped; if not given, 600, and 300 with `slo`, whose
    policy waits for a start time at least."""
    idle_to_zero_s: PositiveFloat = IDLE_TO_ZERO_S
    """With `min: 0`: how long no engine may have had a request before the last one is stopped."""
    max_queued_requests: NonNegativeInt = MAX_QUEUED_REQUESTS
    """Requests that may wait at one engine beyond those that it runs (`max-num-seqs`), from all ingresses together.
    When every engine is full, new requests are refused at once (429)."""
    max_queue_wait_s: PositiveFloat = MAX_QUEUE_WAIT_S
    """How long a request may wait before an engine starts it. After that it is refused (429)."""
    drain_timeout_s: PositiveFloat = 120.0
    """How long a replica that is being stopped may finish its requests; what is left then moves to another replica."""
    longest_stream_s: PositiveFloat = 3600.0
    """The longest answer that must not be cut. HAProxy's limits in deploy.yaml must be at least this."""

    @field_validator("accelerator_type")
    @classmethod
    def _case_is_rays(cls, kind: str | None) -> str | None:
        if kind is None or kind in GPU_BYTES:
            return kind
        names = accelerator_names()
        if kind not in names:
            for name in names:
                if name.casefold() == kind.casefold():
                    raise ValueError(f"{kind!r} is a name that no node has; Ray's is `{name}`")
        return kind

    @field_validator("resources")
    @classmethod
    def _resources_are_custom(cls, resources: dict[str, float]) -> dict[str, float]:
        for name in resources:
            if name in RAYS_OWN:
                raise ValueError(f"`{name}` is no custom resource of Ray; {RAYS_OWN[name]}")
        return resources

    @field_validator("label_selector")
    @classmethod
    def _labels_are_rays(cls, selector: dict[str, str]) -> dict[str, str]:
        if selector:
            from ray._private.label_utils import validate_label_selector  # importing Ray takes a second

            if fault := validate_label_selector(selector):
                raise ValueError(fault)
        return selector

    @model_validator(mode="after")
    def _counts_are_in_order(self) -> ReplicasConfig:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        if self.initial is not None and not self.min <= self.initial <= self.max:
            raise ValueError(f"initial ({self.initial}) is not between min ({self.min}) and max ({self.max})")
        if self.min > 0 and "idle_to_zero_s" in self.model_fields_set:
            raise ValueError(f"idle_to_zero_s is for min: 0, and min is {self.min}; remove it, or set min: 0")
        if self.nodes_per_replica > 1 and self.gpus_per_replica % self.nodes_per_replica:
            raise ValueError(
                f"gpus_per_replica ({self.gpus_per_replica}) cannot be spread evenly over "
                f"nodes_per_replica ({self.nodes_per_replica})"
            )
        return self

    @model_validator(mode="after")
    def _bounds_can_be_kept(self) -> ReplicasConfig:
        if self.gpu_budget is not None and not self.gpus_per_replica:
            raise ValueError("gpu_budget is for engines with GPUs, and gpus_per_replica is 0; use max")
        for least, what in (
            (self.needed, "min" if self.min else "one engine"),
            *((entry.min, "schedule: min") for entry in self.schedule),
        ):
            if least > self.most:
                limit = f"max ({self.max})" if self.most == self.max else f"what gpu_budget ({self.gpu_budget}) allows"
                raise ValueError(f"{what} ({least}) is above {limit}")
        if self.initial is not None and self.initial > self.most:
            raise WrongKey(
                f"initial ({self.initial}) is above what gpu_budget ({self.gpu_budget}) allows: {self.most} engine(s) "
                f"of {self.gpus_per_replica} GPUs",
                ("initial",),
            )
        return self

    @property
    def most(self) -> int:
        """Most engines, by `max` and `gpu_budget`."""
        if self.gpu_budget is None or not self.gpus_per_replica:
            return self.max
        return min(self.max, self.gpu_budget // self.gpus_per_replica)

    @property
    def may_sleep(self) -> bool:
        """Whether there may be no engine while nobody asks."""
        return self.min == 0

    @property
    def needed(self) -> int:
        """For how many engines the cluster must have room."""
        return max(self.min, 1)


def accelerator_names() -> list[str]:
    """The names that Ray has for kinds of GPUs, with those of this application."""
    from ray.util.accelerators import accelerators  # importing Ray takes a second

    return sorted({*GPU_BYTES, *(str(value) for name, value in vars(accelerators).items() if name[0].isupper())})
