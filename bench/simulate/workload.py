"""The trace that is replayed: a burst over a small base, some of it in sessions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.simulate.generators import arrivals
from serve_app.simulate.trace import TraceRequest


@dataclass(frozen=True)
class Workload:
    """`base_per_s` requests, and `burst_per_s` more from `burst_s` on for `burst_length_s`. Every fourth is the next
    turn of one of `sessions`."""

    duration_s: float = 200.0
    base_per_s: float = 0.5
    burst_per_s: float = 1.3
    burst_s: float = 40.0
    burst_length_s: float = 80.0
    sessions: int = 4
    seed: int = 0

    def requests(self) -> list[TraceRequest]:
        """The trace, the same for the same seed."""
        return list(self._requests(random.Random(self.seed)))

    def _requests(self, draw: random.Random) -> Iterator[TraceRequest]:
        most = self.base_per_s + self.burst_per_s
        tokens = {f"s{number}": 0 for number in range(self.sessions)}
        for at_s in arrivals(self._rate, self.duration_s, most, draw):
            prompt, output = draw.randint(400, 1600), draw.randint(20, 100)
            if draw.random() < 0.75:
                yield TraceRequest(at_s, prompt, output)
                continue
            session = draw.choice(sorted(tokens))
            before = tokens[session] if tokens[session] < 4000 else 0
            if not before:
                del tokens[session]  # it has grown long: a new one takes its place
                session = f"s{draw.randrange(1 << 30)}"
            tokens[session] = before + prompt // 2
            yield TraceRequest(at_s, tokens[session], output, session, before)

    def _rate(self, now_s: float) -> float:
        in_burst = self.burst_s <= now_s < self.burst_s + self.burst_length_s
        return self.base_per_s + (self.burst_per_s if in_burst else 0.0)
