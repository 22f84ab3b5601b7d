"""Classes of requests: whose go first, and how the engines are shared among keys of one class.

The keys file gives a key its class and weight (`ingress/auth.py`). A request may ask for a lower class than its key's
(`ingress/requests/service_tier.py`), never for a higher one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class ServiceClass(IntEnum):
    """A higher class goes first."""

    BATCH = -1
    STANDARD = 0
    INTERACTIVE = 1

    @property
    def word(self) -> str:
        """As the keys file has it."""
        return self.name.lower()


@dataclass(frozen=True)
class Share:
    """What a key may have: its class, and its weight against other keys of that class."""

    service_class: ServiceClass = ServiceClass.STANDARD
    weight: int = 1


DEFAULT_SHARE: Final = Share()
"""That of a key whose line says nothing, and of everybody where there are no keys."""


@dataclass(frozen=True)
class Holder:
    """One sequence that an ingress holds, or would: its client, of that class and weight."""

    client: str
    rank: int = 0
    weight: float = 1.0


def holds_little(holder: Holder, asked: int, held: Collection[Holder]) -> bool:
    """Whether a replica may make room for `asked` more of this client: one of a lower class is held, or the client has
    less than its share of what its class holds. One client alone has all of that.

    `held` is by one ingress. What others hold is not known, so one request of a client that holds nothing in its class
    here may always be sent to the replicas, in any class: they know. It is one at a time, and is held meanwhile. More
    at once only where nothing of the class is held here to compare with."""
    if any(one.rank < holder.rank for one in held):
        return True
    alike = [one for one in held if one.rank == holder.rank]
    weights = {one.client: one.weight for one in alike} | {holder.client: holder.weight}
    own = sum(one.client == holder.client for one in alike)
    if not own and (asked == 1 or not alike):
        return True
    return len(weights) > 1 and (own + asked) * sum(weights.values()) <= len(alike) * holder.weight
