"""How a follower (a projection, a reaction) is doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evsync.projections.models.claims import Observation, Worker
from evsync.projections.projection import Projection
from evsync.records import service_of

State = Literal["running", "standby", "halted", "retrying"]


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One group of a projection in one log."""

    group: int
    position: int
    """Everything of the group up to here has been applied."""
    lag_events: int | None
    """How many events of the log, of all groups, lie behind that; None if it cannot be told now."""
    lag_s: float | None
    """How long ago the first of them happened: 0 if there is none, None if it was not asked or cannot be told."""
    count: int
    """How many events have been applied."""


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
    lag_s: float | None = None
    """How long ago the first event happened that has not been applied: 0 if there is none, None if it cannot be told.

    Now is by the clock here, then by the clock of the process that decided."""
    groups: Sequence[GroupStatus] = ()
    """Of a projection, once something was applied."""

    @property
    def lag_events(self) -> int | None:
        """How many events have not been applied yet."""
        return lag_events(self.head, self.position)


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
    workers: Sequence[Worker] = ()
    """Those of a projection, in all processes."""
    parked: int = 0
    """How many events are set aside."""


def lag_events(head: int | None, position: int) -> int | None:
    """How many events of a log lie behind a position, if that can be told."""
    return None if head is None else max(0, head - position)


def waiting_for(sources: Sequence[str], logs: Sequence[LogStatus]) -> list[str]:
    """The services of which no log is among these."""
    return [source for source in sources if not any(service_of(log.log) == source for log in logs)]


def status_of(
    projection: Projection[Any],
    state: State,
    reason: str | None,
    observed: Observation,
    heads: Mapping[str, int | None],
    trouble: Mapping[str, str | None],
) -> FollowerStatus:
    """Of a projection: from what can be seen in its read model, the heads of its logs, and the trouble with each."""
    groups: dict[str, list[GroupStatus]] = {}
    for c in sorted(observed.checkpoints, key=lambda c: c.group):
        lag = lag_events(heads.get(c.log), c.position)
        groups.setdefault(c.log, []).append(GroupStatus(c.group, c.position, lag, None, c.count))
    # As far as the group that is furthest behind; one that has no checkpoint yet is at the beginning.
    seen = {
        log: min(g.position for g in found) if len(found) == projection.groups else 0 for log, found in groups.items()
    }
    logs = [
        LogStatus(
            name, seen.get(name, 0), heads.get(name), state, trouble.get(name), groups=tuple(groups.get(name, ()))
        )
        for name in sorted({*seen, *heads, *trouble})
    ]
    waiting = waiting_for(projection.sources, logs)
    return FollowerStatus(projection.name, state, reason, logs, waiting, observed.workers, observed.parked)
