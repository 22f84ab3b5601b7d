"""One judge for all ingresses, and an ingress that follows it."""

from __future__ import annotations

from serve_app.config.pools import CanaryConfig
from serve_app.ingress.canary.follower import CanaryFollower, JudgeAway
from serve_app.ingress.canary.samples import ArmSums, Samples
from serve_app.ingress.canary.trial import Directive, Trial, TrialReport
from serve_app.ingress.canary.verdict import Verdict
from serve_app.protocol.errors import Outcome
from serve_app.router.attempts import Transport
from serve_app.router.canary_arm import CanaryArm
from serve_app.router.composite_transport import CompositeTransport
from serve_app.router.request_context import AttemptTrace, RequestTrace
from serve_app.router.routing import Decision, Reason
from tests.unit.local_replicas import LocalReplica, LocalTransport

CONFIG = CanaryConfig(share=0.1, for_s=60, min_requests=100)
BROKEN, FINE = ArmSums(attempts=20, failed=20), ArmSums(attempts=400)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def trial(clock: Clock, told: list[Verdict] | None = None) -> Trial:
    return Trial("t", CONFIG, [].append if told is None else told.append, clock)


def report(ingress: str, canary: ArmSums, stable: ArmSums = FINE) -> TrialReport:
    return TrialReport(ingress, "t", Samples(canary, stable), canary_up=True)


def test_the_samples_of_all_ingresses_count_and_the_verdict_is_said_once() -> None:
    told: list[Verdict] = []
    judge = trial(Clock(), told)
    assert judge.exchange(report("a", ArmSums(attempts=6, failed=6))).share == 0.1
    assert judge.exchange(report("b", ArmSums(attempts=6, failed=6))).share == 0.0
    assert judge.exchange(report("a", ArmSums(attempts=7, failed=7))).state == "rolled_back"
    assert [one.state.value for one in told] == ["rolled_back"]


def test_a_report_counts_once_however_often_it_comes() -> None:
    judge = trial(Clock())
    for _ in range(5):
        said = judge.exchange(report("a", ArmSums(attempts=5, failed=5)))
    assert (said.state, said.samples.canary.attempts) == ("trying", 5)


def test_nobody_goes_to_a_canary_whose_engines_are_starting() -> None:
    judge = trial(Clock())
    assert judge.exchange(TrialReport("a")).share == 0.0
    assert judge.exchange(TrialReport("a", "t", canary_up=True)).share == 0.1
    assert judge.exchange(TrialReport("a", "t")).share == 0.1, "it may have died: that is judged"


def test_samples_of_another_trial_do_not_count() -> None:
    said = trial(Clock()).exchange(TrialReport("a", "before", Samples(BROKEN, FINE)))
    assert (said.trial, said.state, said.samples.canary.attempts) == ("t", "trying", 0)


def test_a_new_ingress_is_told_the_verdict() -> None:
    judge = trial(Clock())
    judge.exchange(report("a", BROKEN))
    assert judge.exchange(TrialReport("b")).share == 0.0


def test_a_judge_that_was_restarted_goes_on_where_the_last_one_was() -> None:
    clock = Clock()
    first = trial(clock)
    first.exchange(report("a", BROKEN))
    said = first.exchange(report("a", BROKEN))
    told: list[Verdict] = []
    second = trial(clock, told)
    again = second.exchange(TrialReport("a", "t", Samples(), said.state, said.reason, said.tried_s))
    assert (again.state, again.share, again.reason) == (said.state, 0.0, said.reason)
    assert not told, "it was said before"


def test_the_time_that_a_canary_was_tried_outlives_the_judge() -> None:
    clock = Clock()
    first = trial(clock)
    one = ArmSums(attempts=1)
    first.exchange(report("a", one))
    clock.now_s += 50
    said = first.exchange(report("a", one))
    second = trial(clock)
    clock.now_s += 5
    assert second.exchange(TrialReport("a", "t", Samples(one, one), tried_s=said.tried_s)).tried_s == 50


# ---- an ingress ------------------------------------------------------------------------------------------------------


class Application:
    """The canary's application, which is there or not, and whose judge answers or not."""

    def __init__(self) -> None:
        self.is_there, self.answers = True, True
        self.directive = Directive("t", 0.1)
        self.reports: list[TrialReport] = []

    async def exists(self) -> bool:
        return self.is_there

    async def connect(self) -> Transport:
        return LocalTransport(LocalReplica("c"))

    async def exchange(self, report: TrialReport) -> Directive:
        if not self.answers:
            raise JudgeAway("it is being replaced")
        self.reports.append(report)
        return self.directive


class Ingress:
    def __init__(self) -> None:
        self.application, self.arm = Application(), CanaryArm()
        self.fleet = CompositeTransport({"": LocalTransport(LocalReplica("a"))})
        self.follower = CanaryFollower("i", self.application, self.arm, self.fleet, lambda: True)

    async def listed(self) -> set[str]:
        return {info.replica_id for info in (await self.fleet.replicas())[0]}


def answered(*, on_canary: bool, end: str = "finished") -> RequestTrace:
    attempt = AttemptTrace("x", 1.0, Decision("x", Reason.ONLY, 1), first_token_s=1.5, last_token_s=2.5)
    attempt.end, attempt.on_canary, attempt.steps, attempt.tokens = end, on_canary, 11, 22
    return RequestTrace(attempts=[attempt])


async def test_an_ingress_knows_of_the_canary_before_it_serves() -> None:
    ingress = Ingress()
    async with ingress.follower:
        assert ingress.arm.share == 0.1
        assert await ingress.listed() == {"a", "c"}


async def test_while_the_judge_is_away_its_last_word_holds() -> None:
    ingress = Ingress()
    await ingress.follower.look()
    ingress.application.answers = False
    await ingress.follower.look()
    assert ingress.arm.share == 0.1


async def test_with_its_application_the_canary_is_gone() -> None:
    ingress = Ingress()
    await ingress.follower.look()
    ingress.application.answers = ingress.application.is_there = False
    await ingress.follower.look()
    assert (ingress.arm.share, ingress.follower.view()) == (0.0, None)
    assert await ingress.listed() == {"a"}


async def test_what_it_has_seen_is_reported_and_begins_anew_with_another_trial() -> None:
    ingress = Ingress()
    ingress.follower.note([answered(on_canary=True)], Outcome.OK)  # nothing is tried yet
    await ingress.follower.look()
    ingress.follower.note([answered(on_canary=True)], Outcome.OK)
    ingress.follower.note([answered(on_canary=False, end="died"), answered(on_canary=False)], Outcome.OK)
    ingress.follower.note([answered(on_canary=False, end="cancelled")], Outcome.CANCELLED)
    ingress.application.directive = Directive("u", 0.1)
    await ingress.follower.look()
    seen = ingress.application.reports[-1].samples
    assert (seen.canary.attempts, seen.canary.failed) == (1, 0)
    assert (seen.stable.attempts, seen.stable.failed) == (2, 1)
    assert seen.canary.tpot_s.count == 1
    await ingress.follower.look()
    assert ingress.application.reports[-1].samples.canary.attempts == 0
