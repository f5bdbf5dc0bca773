"""What a person does about parked streams: look at them, try them again, skip what cannot be applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

import sqlalchemy as sa

from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.projections.batch import apply_batch
from evsync.projections.failures import CannotApply, DatabaseAway
from evsync.projections.halt import parked_at
from evsync.projections.handlers import Handlers
from evsync.projections.models import bookkeeping, leases, parked_rows
from evsync.projections.models.claims import Claim
from evsync.projections.models.database import ViewsDatabase
from evsync.projections.models.parked_rows import ParkedSummary
from evsync.projections.models.tables import Catalog, Tables
from evsync.projections.parking import ParkedEvent
from evsync.records import Checkpoint

T = TypeVar("T")


class ParkedStreams:
    """The parked streams of a projection that keeps tables."""

    def __init__(self, claim: Claim, handlers: Handlers, database: ViewsDatabase, catalog: Catalog) -> None:
        self._claim, self._handlers, self._database, self._catalog = claim, handlers, database, catalog
        self._plan = bookkeeping.plan_of_checkpoints(database.dialect)

    async def summaries(self) -> tuple[Sequence[ParkedSummary], int]:
        """All of them, the one that was parked first in front; and how many events have been skipped so far."""

        def look(connection: sa.Connection) -> tuple[Sequence[ParkedSummary], int]:
            if not bookkeeping.exists(connection):
                return [], 0
            return parked_rows.summaries(connection, self._claim), parked_rows.count_skipped(connection, self._claim)

        return await self._read(look)

    async def events(self, service: str, stream: str) -> Sequence[ParkedEvent]:
        """The parked events of a stream, in order. Raises ConfigurationError when there are none."""
        return await self._read(lambda connection: self._find(connection, service, stream))

    async def retry(self, service: str, stream: str) -> int:
        """Apply the parked events of a stream, all of them in one transaction; how many. The stream is free then.

        Raises Parked when one still cannot be applied: nothing has changed then. Raises ConfigurationError when the
        stream is not parked.
        """
        tried: list[ParkedEvent] = []

        def work(connection: sa.Connection) -> int:
            tried[:] = self._locked(connection, service, stream)
            self._apply(connection, tried)
            parked_rows.delete(connection, self._claim, tried)
            return len(tried)

        try:
            return await self._write(work)
        except CannotApply as e:
            problem: Exception = e
            culprit = next(parked for parked in tried if parked.event is e.event)._replace(reason=e.reason)
        except sa.exc.SQLAlchemyError as e:  # at the very end
            problem, culprit = e, tried[0]._replace(reason=str(e))
        await self._write(lambda c: parked_rows.explain(c, self._claim, culprit))
        raise parked_at(culprit, follower=self._claim.projection) from problem

    async def skip(self, service: str, stream: str, *, every: bool = False) -> int:
        """Give the first parked event of a stream up for good, or every one; how many. A record of them is kept.

        The rest of the stream stays parked: try it again next. Raises ConfigurationError when the stream is not parked.
        """

        def work(connection: sa.Connection) -> int:
            found = self._locked(connection, service, stream)
            given_up = found if every else found[:1]
            parked_rows.skip(connection, self._claim, given_up, leases.time(connection))
            return len(given_up)

        return await self._write(work)

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._database.read(work)
        except DatabaseAway as e:
            raise StoreUnavailable(f"the read models' database cannot be used now: {e}") from e

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._database.write(work)
        except DatabaseAway as e:
            raise StoreUnavailable(f"the read models' database cannot be used now, nothing was changed: {e}") from e

    def _locked(self, connection: sa.Connection, service: str, stream: str) -> list[ParkedEvent]:
        """The events of a stream, which nobody can add to until the transaction ends: its worker is fenced off."""
        parked_rows.raise_token(connection, self._claim, self._find(connection, service, stream)[0].group)
        return self._find(connection, service, stream)

    def _find(self, connection: sa.Connection, service: str, stream: str) -> list[ParkedEvent]:
        exists = bookkeeping.exists(connection)
        if exists and (found := parked_rows.of_stream(connection, self._claim, service, stream)):
            return found
        raise ConfigurationError(
            f"stream {stream!r} of service {service!r} is not parked by projection {self._claim.projection!r}: see "
            "`evsync parked list`"
        )

    def _apply(self, connection: sa.Connection, events: Sequence[ParkedEvent]) -> None:
        """Through the handlers, and into count and digest of the checkpoints, whose positions stay where they are."""
        tables = Tables(connection, self._catalog)
        try:
            for log, parked in groupby(events, key=attrgetter("log")):
                group, stored = events[0].group, [p.event for p in parked]
                begin = {group: Checkpoint(log, group, "", 0)}
                [added] = apply_batch(self._handlers, log, stored, begin, self._claim.groups, tables, tables.flush)
                bookkeeping.add(connection, self._claim, added, self._plan)
        finally:
            tables.end()
