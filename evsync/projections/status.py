"""How a follower (a projection, a reaction) is doing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["running", "standby", "halted", "retrying"]


@dataclass(frozen=True, slots=True)
class LogStatus:
    """One log of a follower."""

    log: str
    position: int
    """Everything up to here has been applied."""
    head: int | None
    """The log's last position, or None if it cannot be told now."""
    state: State
    reason: str | None
    """What stands in the way, if anything does."""

    @property
    def lag_events(self) -> int | None:
        """How many events have not been applied yet."""
        return None if self.head is None else max(0, self.head - self.position)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A process that works on a projection, or stands by for it."""

    owner: str
    """Host, process id and something unique, with colons between them."""
    groups: int
    """How many of the projection's groups it has."""
    reason: str | None
    """What stands in its way, if anything does."""


@dataclass(frozen=True, slots=True)
class FollowerStatus:
    """A projection or a reaction, whether it is run by this process or by another."""

    name: str
    state: State
    """`standby`: nobody works on it that this process could know of, or (a reaction) another process does."""
    reason: str | None
    logs: Sequence[LogStatus]
    waiting_for: Sequence[str] = ()
    """Services of which no log has been found yet."""
    workers: Sequence[WorkerStatus] = ()
    """Those of a projection, in all processes."""
