"""Hours at which a fleet has at least so many replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True)
class ScheduleRule:
    """At least `minimum` replicas from `begin` to `end` by the clock of `timezone`, on the `days` (0: Monday) on which
    it begins. It goes on after midnight where `end` is not after `begin`."""

    minimum: int
    begin: time
    end: time
    days: frozenset[int]
    timezone: str = "UTC"
    words: str = ""
    """How the configuration puts it."""

    def applies(self, now_s: float) -> bool:
        """Whether it does at this unix time."""
        now = datetime.fromtimestamp(now_s, UTC).astimezone(ZoneInfo(self.timezone))
        clock, today = now.time(), now.weekday()
        if self.begin < self.end:
            return today in self.days and self.begin <= clock < self.end
        yesterday = (now - timedelta(days=1)).weekday()
        return (today in self.days and clock >= self.begin) or (yesterday in self.days and clock < self.end)


def parse_days(words: str) -> frozenset[int]:
    """Days as in `mon-fri`, `sat,sun` or `fri-mon,wed`. Raises `ValueError`."""
    found: set[int] = set()
    for part in words.lower().replace(" ", "").split(","):
        first, _, last = part.partition("-")
        begin, end = _day(first), _day(last or first)
        found.update((begin + offset) % 7 for offset in range((end - begin) % 7 + 1))
    return frozenset(found)


def parse_clock(words: str) -> time:
    """A time of day as in `08:00`; `24:00` is midnight. Raises `ValueError`."""
    if words == "24:00":
        return time(0, 0)
    try:
        return datetime.strptime(words, "%H:%M").time()  # noqa: DTZ007  # a time of day has no zone
    except ValueError:
        raise ValueError(f"{words!r} is not a time of day such as 08:00") from None


def schedule_rule(minimum: int, begin: str, end: str, days: str, timezone: str) -> ScheduleRule:
    """The rule that these words mean. Raises `ValueError`, naming the word that is wrong."""
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{timezone!r} is not a time zone such as Europe/Berlin") from None
    words = f"from {begin} to {end} on {days} ({timezone})"
    return ScheduleRule(minimum, parse_clock(begin), parse_clock(end), parse_days(days), timezone, words)


def schedule(rules: Sequence[dict[str, str | int]]) -> tuple[ScheduleRule, ...]:
    """The rules in JSON's words (`min`, `from`, `to`, `days`, `timezone`). Raises `ValueError`."""
    return tuple(
        schedule_rule(int(rule["min"]), str(rule["from"]), str(rule["to"]), str(rule["days"]), str(rule["timezone"]))
        for rule in rules
    )


def _day(word: str) -> int:
    if word not in DAYS:
        raise ValueError(f"{word!r} is not a day: {', '.join(DAYS)}")
    return DAYS.index(word)
