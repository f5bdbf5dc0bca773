"""How a follower (a projection, a reaction) is doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from evsync.projections.projection import Projection
    from evsync.projections.read_model import Observation

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
    parked: int = 0
    """How many events are set aside."""


def status_of(
    projection: Projection[Any],
    state: State,
    reason: str | None,
    observed: Observation,
    heads: Mapping[str, int | None],
    trouble: Mapping[str, str | None],
) -> FollowerStatus:
    """Of a projection: from what can be seen in its read model, the heads of its logs, and the trouble with each."""
    positions: dict[str, list[int]] = {}
    for c in observed.checkpoints:
        positions.setdefault(c.log, []).append(c.position)
    # As far as the group that is furthest behind; one that has no checkpoint yet is at the beginning.
    seen = {log: min(found) if len(found) == projection.groups else 0 for log, found in positions.items()}
    logs = [
        LogStatus(name, seen.get(name, 0), heads.get(name), state, trouble.get(name))
        for name in sorted({*seen, *heads, *trouble})
    ]
    waiting = [s for s in projection.sources if not any(log.log.startswith(f"{s}.") for log in logs)]
    workers = [WorkerStatus(w.owner, len(w.groups), w.reason) for w in observed.workers]
    return FollowerStatus(projection.name, state, reason, logs, waiting, workers, observed.parked)
