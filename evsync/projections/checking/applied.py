"""What a stored read model holds, in one moment: how far each group is, and which events before that were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from evsync.projections.models import parked_rows
from evsync.projections.models.bookkeeping import exists, made_by, read_checkpoints, taken_groups
from evsync.projections.parking import ParkedEvent
from evsync.records import Checkpoint

Places = Mapping[str, Mapping[int, int]]
"""Log → group → position."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A read model's own account of itself."""

    version: int = 0
    """Of the projection that has made it; 0: nothing was applied yet."""
    groups: int = 0
    checkpoints: Sequence[Checkpoint] = ()
    parked: Sequence[ParkedEvent] = ()
    skipped: Sequence[ParkedEvent] = ()
    taken: Mapping[int, bool] = field(default_factory=dict)
    """The groups that a worker has had: group → whether it has halted, and none took its place."""

    @property
    def places(self) -> Places:
        """How far each group is."""
        found: dict[str, dict[int, int]] = {}
        for c in self.checkpoints:
            found.setdefault(c.log, {})[c.group] = c.position
        return found

    @property
    def left_out(self) -> frozenset[tuple[str, int]]:
        """Log and position of each event that is parked or was skipped."""
        return frozenset((p.log, p.event.position) for p in (*self.parked, *self.skipped))


def applied(connection: sa.Connection, projection: str) -> Applied:
    """Read it. The connection's transaction sees one moment from here on, until it ends; it must be at its start."""
    if connection.dialect.name == "postgresql":  # in SQLite every transaction is like that
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    if not exists(connection) or (claim := made_by(connection, projection)) is None:
        return Applied()
    left = parked_rows.left_out(connection, claim)
    return Applied(
        claim.version,
        claim.groups,
        read_checkpoints(connection, claim),
        [p for p, skipped in left if not skipped],
        [p for p, skipped in left if skipped],
        taken_groups(connection, claim),
    )
