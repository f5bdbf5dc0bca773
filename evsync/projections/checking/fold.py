"""History once more, through a projection's handlers, into tables that are thrown away."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from evsync.errors import EvsyncError
from evsync.ports import LogReader, LogSource, Progress, unheard
from evsync.projections.batch import apply_batch
from evsync.projections.checking.applied import Places
from evsync.projections.checking.history import end_of, opened_readers, read_history
from evsync.projections.failures import CannotApply
from evsync.projections.models.tables import Catalog, Tables
from evsync.projections.projection import Projection
from evsync.records import Checkpoint, StoredEvent


class Fold:
    """One projection over its logs, as far as it is told."""

    def __init__(
        self, projection: Projection[Any], metadata: sa.MetaData, connection: sa.Connection, groups: int
    ) -> None:
        """`connection` has the tables, empty (see `scratch`); `groups` is in how many the places are told."""
        self._handlers, self._groups, self._connection = projection.handlers, groups, connection
        self._catalog = Catalog(metadata, connection.dialect)
        self._reached: dict[str, dict[int, int]] = {}

    async def go_on(
        self,
        sources: Sequence[LogSource],
        to: Places,
        advance: Progress = unheard,
        *,
        without: Collection[tuple[str, int]] = (),
    ) -> None:
        """Apply what lies between the places that were reached last and these, but for some (log and position).

        Raises EvsyncError for an event that the handlers cannot apply.
        """
        async with opened_readers(sources) as readers:
            total = sum(max(to.get(r.log, {}).values(), default=0) for r in readers)
            done = 0
            for reader in readers:
                until = to.get(reader.log, {})
                await self._log(reader, until, without, lambda place: advance(done + place, total))  # noqa: B023
                done += max(until.values(), default=0)

    async def _log(
        self, reader: LogReader, until: Mapping[int, int], without: Collection[tuple[str, int]], tell: Any
    ) -> None:
        groups = self._groups
        reached = self._reached.setdefault(reader.log, dict.fromkeys(range(groups), 0))
        async for events in read_history(reader, max(until.values(), default=0), after=min(reached.values())):
            due = [e for e in events if e.position <= until.get(e.slot % groups, 0)]
            if without:
                due = [e for e in due if (reader.log, e.position) not in without]
            if due:
                await asyncio.to_thread(self._apply, reader.log, due, reached)
            tell(events[-1].position)
        reached.update(until)

    def _apply(self, log: str, events: Sequence[StoredEvent], reached: Mapping[int, int]) -> None:
        checkpoints = {group: Checkpoint(log, group, "", position) for group, position in reached.items()}
        tables = Tables(self._connection, self._catalog)
        try:
            apply_batch(self._handlers, log, events, checkpoints, self._groups, tables)
            tables.flush()
        except CannotApply as e:
            raise cannot_go_through(log, e.event, e.reason) from e
        except sa.exc.SQLAlchemyError as e:
            first, last = events[0].position, events[-1].position
            raise EvsyncError(
                f"history cannot be gone through again: what the events at positions {first} to {last} of log {log!r} "
                f"make of the tables cannot be written: {e}"
            ) from e
        finally:
            tables.end()


async def heads_of(sources: Sequence[LogSource], groups: int) -> dict[str, dict[int, int]]:
    """Where the logs end now, for every group."""
    async with opened_readers(sources) as readers:
        return {reader.log: dict.fromkeys(range(groups), await end_of(reader, 0)) for reader in readers}


def cannot_go_through(log: str, event: StoredEvent, reason: str) -> EvsyncError:
    """What to say of an event that the handlers cannot apply (any more)."""
    return EvsyncError(
        f"history cannot be gone through again: {event.type} at position {event.position} of log {log!r} (version "
        f"{event.version} of stream {event.stream!r}) cannot be applied by the handlers as they are now: {reason}"
    )
