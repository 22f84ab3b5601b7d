"""The trial of a canary in one process for all ingresses: their samples are added up here, and the verdict is theirs.

A verdict is final for its trial; another trial is another configuration. Ingresses repeat what they know with every
report, so that a judge that has been restarted goes on where the last one was.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from serve_app.config.pools import CanaryConfig
from serve_app.ingress.canary.samples import Samples
from serve_app.ingress.canary.verdict import TrialState, Verdict, judge


class TrialReport(msgspec.Struct, array_like=True):
    """What one ingress has seen of a trial since its begin, and what it was told last: `state`, `reason`, `tried_s`.
    With another `trial`, or none, the rest is of no use."""

    ingress: str
    trial: str = ""
    samples: Samples = msgspec.field(default_factory=Samples)
    state: str = TrialState.TRYING.value
    reason: str = ""
    tried_s: float = 0.0
    canary_up: bool = False
    """Whether a canary takes work, as this ingress sees it."""


class Directive(msgspec.Struct, array_like=True, frozen=True):
    """What every ingress does: `share` of its sessions go to the canary of `trial`. `samples` are those of all."""

    trial: str = ""
    share: float = 0.0
    state: str = TrialState.TRYING.value
    reason: str = ""
    tried_s: float = 0.0
    samples: Samples = msgspec.field(default_factory=Samples)


class Trial:
    """One trial. `on_verdict` is called once, when it is decided here."""

    def __init__(
        self,
        name: str,
        config: CanaryConfig,
        on_verdict: Callable[[Verdict], None] = lambda _verdict: None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._config = config
        self._on_verdict = on_verdict
        self._clock_s = clock_s
        self._reports: dict[str, Samples] = {}
        self._began_s: float | None = None
        self._verdict = Verdict(TrialState.TRYING, "its engines are starting")

    def exchange(self, report: TrialReport) -> Directive:
        """Take an ingress's report, and say what it does until its next."""
        if self._began_s is None and report.canary_up:
            self._began_s = self._clock_s()
        if report.trial == self._name:
            self._reports[report.ingress] = report.samples
            self._take_over(report)
        self._judge()
        return Directive(
            self._name,
            self._share(),
            self._verdict.state.value,
            self._verdict.reason,
            self._tried_s(),
            self._samples(),
        )

    def _take_over(self, report: TrialReport) -> None:
        """What an ingress was told by the judge before this one counts."""
        if report.tried_s > self._tried_s():
            self._began_s = self._clock_s() - report.tried_s
        if self._verdict.state is TrialState.TRYING and report.state != TrialState.TRYING.value:
            self._verdict = Verdict(TrialState(report.state), report.reason)

    def _judge(self) -> None:
        if self._verdict.state is not TrialState.TRYING or self._began_s is None:
            return
        self._verdict = judge(self._samples(), self._tried_s(), self._config)
        if self._verdict.state is not TrialState.TRYING:
            self._on_verdict(self._verdict)

    def _share(self) -> float:
        """None before an engine of the canary is up: its sessions would go to the rest, and come back."""
        if self._began_s is None or self._verdict.state is TrialState.ROLLED_BACK:
            return 0.0
        return self._config.share

    def _samples(self) -> Samples:
        found = Samples()
        for one in self._reports.values():
            found = found.plus(one)
        return found

    def _tried_s(self) -> float:
        return 0.0 if self._began_s is None else self._clock_s() - self._began_s
