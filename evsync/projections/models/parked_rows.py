"""Parked events in the database of the read models: the table `evsync_parked`.

Every function works inside the transaction of the connection that it is given. Rows of a group are added by its worker
in the transaction of a batch; whoever else changes them raises the group's token first, so that the worker's next batch
is rolled back and it learns anew which streams are parked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from evsync.projections.models.bookkeeping import LEASES, PARKED
from evsync.projections.models.claims import Claim
from evsync.projections.parking import ParkedEvent, ParkedStream
from evsync.records import Position, StoredEvent


class ParkedSummary(NamedTuple):
    """One parked stream."""

    service: str
    stream: str
    group: int
    events: int
    """How many are parked."""
    first: ParkedEvent
    """The one that could not be applied."""
    since: float
    """When it was parked: seconds since 1970 by the database's clock."""


def streams(connection: sa.Connection, claim: Claim, groups: Collection[int]) -> list[ParkedStream]:
    """The streams of these groups that are parked."""
    rows = connection.execute(
        sa.select(PARKED.c.service, PARKED.c.stream, PARKED.c.group)
        .where(*_waiting(claim), PARKED.c.group.in_(groups))
        .distinct()
    )
    return [ParkedStream(*row) for row in rows]


def count(connection: sa.Connection, claim: Claim) -> int:
    """How many events are parked."""
    return connection.execute(sa.select(sa.func.count()).select_from(PARKED).where(*_waiting(claim))).scalar_one()


def count_skipped(connection: sa.Connection, claim: Claim) -> int:
    """How many events a person has skipped."""
    where = (*_mine(claim), PARKED.c.skipped.is_not(None))
    return connection.execute(sa.select(sa.func.count()).select_from(PARKED).where(*where)).scalar_one()


def store(connection: sa.Connection, claim: Claim, events: Sequence[ParkedEvent], now: float) -> None:
    """Add these, in order."""
    connection.execute(
        sa.insert(PARKED),
        [
            {
                "projection": claim.projection,
                "version": claim.version,
                "log": parked.log,
                "service": parked.service,
                "group": parked.group,
                "commit_end": parked.event.position + parked.event.remaining,
                "stream_version": parked.event.version,
                "reason": _text(parked.reason),
                "parked": now,
                **{name: getattr(parked.event, name) for name in _SAME},
            }
            for parked in events
        ],
    )


def at(connection: sa.Connection, claim: Claim, position: Position) -> ParkedEvent | None:
    """The first parked event of the commit that the position belongs to."""
    row = connection.execute(
        _select(claim)
        .where(PARKED.c.log == position.log, PARKED.c.incarnation == position.incarnation)
        .where(PARKED.c.position <= position.number, PARKED.c.commit_end >= position.number)
        .limit(1)
    ).first()
    return _event(row) if row is not None else None


def of_stream(connection: sa.Connection, claim: Claim, service: str, stream: str) -> list[ParkedEvent]:
    """The parked events of a stream, in order."""
    rows = connection.execute(_select(claim).where(PARKED.c.service == service, PARKED.c.stream == stream))
    return [_event(row) for row in rows]


def summaries(connection: sa.Connection, claim: Claim) -> list[ParkedSummary]:
    """All parked streams, the one that was parked first in front."""
    firsts = (
        sa.select(sa.func.min(PARKED.c.number).label("number"), sa.func.count().label("events"))
        .where(*_waiting(claim))
        .group_by(PARKED.c.service, PARKED.c.stream)
        .subquery()
    )
    rows = connection.execute(
        sa.select(PARKED, firsts.c.events).join(firsts, firsts.c.number == PARKED.c.number).order_by(PARKED.c.number)
    )
    return [ParkedSummary(r.service, r.stream, r.group, r.events, _event(r), r.parked) for r in rows]


def left_out(connection: sa.Connection, claim: Claim) -> list[tuple[ParkedEvent, bool]]:
    """All events up to the checkpoints that were not applied, and whether a person has skipped each."""
    rows = connection.execute(sa.select(PARKED).where(*_mine(claim)).order_by(PARKED.c.number))
    return [(_event(row), row.skipped is not None) for row in rows]


def raise_token(connection: sa.Connection, claim: Claim, group: int) -> None:
    """Fence the worker of a group off, without taking the group from it: its next batch is rolled back."""
    mine = (LEASES.c.projection == claim.projection, LEASES.c.group == group)
    connection.execute(sa.update(LEASES).where(*mine).values(token=LEASES.c.token + 1))


def delete(connection: sa.Connection, claim: Claim, events: Iterable[ParkedEvent]) -> None:
    """These have been applied."""
    for parked in events:
        connection.execute(sa.delete(PARKED).where(*_this(claim, parked)))


def skip(connection: sa.Connection, claim: Claim, events: Iterable[ParkedEvent], now: float) -> None:
    """These will never be applied; their rows stay as the record of that."""
    for parked in events:
        connection.execute(sa.update(PARKED).where(*_this(claim, parked)).values(skipped=now))


def explain(connection: sa.Connection, claim: Claim, parked: ParkedEvent) -> None:
    """Store why the event could not be applied the last time it was tried."""
    connection.execute(sa.update(PARKED).where(*_this(claim, parked)).values(reason=_text(parked.reason)))


_SAME = ("position", "incarnation", "stream", "slot", "type", "time_us", "id", "data", "meta")
"""Fields of a StoredEvent that are columns of the same name."""


def _mine(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return PARKED.c.projection == claim.projection, PARKED.c.version == claim.version


def _waiting(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return *_mine(claim), PARKED.c.skipped.is_(None)


def _this(claim: Claim, parked: ParkedEvent) -> tuple[sa.ColumnElement[bool], ...]:
    return *_mine(claim), PARKED.c.log == parked.log, PARKED.c.position == parked.event.position


def _select(claim: Claim) -> sa.Select[Any]:
    return sa.select(PARKED).where(*_waiting(claim)).order_by(PARKED.c.number)


def _event(row: sa.Row[Any]) -> ParkedEvent:
    same = {name: getattr(row, name) for name in _SAME}
    event = StoredEvent(version=row.stream_version, remaining=row.commit_end - row.position, **same)
    return ParkedEvent(row.log, row.group, event, row.reason)


def _text(reason: str | None) -> str | None:
    """What PostgreSQL takes as text."""
    return reason.replace("\0", "\\0") if reason is not None else None
