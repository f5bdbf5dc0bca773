"""A read model in tables of a SQL database."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection
from typing import ClassVar, ParamSpec, TypeVar

import sqlalchemy as sa

from evsync.errors import ConfigurationError
from evsync.liveness import IDLE_S
from evsync.projections.batch import Settle
from evsync.projections.failures import CannotApply, DatabaseAway, Fenced, GatheredFailed
from evsync.projections.handlers import Handlers
from evsync.projections.models import bookkeeping, leases, parked_rows
from evsync.projections.models.claims import Claim, Holding, Observation
from evsync.projections.models.database import ViewsDatabase
from evsync.projections.models.engines import away
from evsync.projections.models.parked_streams import ParkedStreams
from evsync.projections.models.read_model import Outcome, ReadModel
from evsync.projections.models.tables import Catalog, Tables
from evsync.projections.parking import ParkedEvent
from evsync.records import Checkpoint, Position

T = TypeVar("T")
Ps = ParamSpec("Ps")


def _database_away(work: Callable[Ps, T]) -> Callable[Ps, T]:
    """Bookkeeping that fails is the database's fault, never an event's."""

    @functools.wraps(work)
    def carry_out(*args: Ps.args, **kwargs: Ps.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except sa.exc.SQLAlchemyError as e:
            raise DatabaseAway(f"the bookkeeping cannot be used: {away(e) or e}") from e

    return carry_out


class SqlModel(ReadModel[Tables]):
    """A read model in tables: `SqlModel(metadata)`. Missing tables are made when the service is opened."""

    def __init__(self, metadata: sa.MetaData) -> None:
        if not isinstance(metadata, sa.MetaData):
            raise ConfigurationError(f"SqlModel takes the sqlalchemy.MetaData of its tables, not {metadata!r}")
        self.metadata = metadata

    def open(self, claim: Claim, database: ViewsDatabase | None) -> SqlSession:
        """See ReadModel."""
        if database is None:
            raise ConfigurationError(
                f"projection {claim.projection!r} keeps tables, and there is no database for them: give the service "
                "views='sqlite:///views.db'"
            )
        return SqlSession(self.metadata, claim, database)


class SqlSession:
    """Applies batches in transactions that also move the checkpoints and check the tokens. Implements ModelSession."""

    growth: ClassVar[int] = 4  # a row that several events change is written once a batch
    lasting: ClassVar[bool] = True

    def __init__(self, metadata: sa.MetaData, claim: Claim, database: ViewsDatabase) -> None:
        self._metadata, self._claim, self._database = metadata, claim, database
        self._catalog = Catalog(metadata, database.dialect)
        self._checkpoint_plan = bookkeeping.plan_of_checkpoints(database.dialect)
        self._worker_plan = leases.plan_of_workers(database.dialect)
        self._renewed = 0.0
        self._slow = False
        """Whether the handlers of the last batch took so long that the lease may run out meanwhile."""
        if taken := sorted(bookkeeping.NAMES & metadata.tables.keys()):
            raise ConfigurationError(f"table {taken[0]!r} is evsync's own: name the read model's tables otherwise")

    @property
    def state(self) -> Tables:
        """There is none: raises ConfigurationError."""
        raise ConfigurationError(f"projection {self._claim.projection!r} keeps tables: use query() to read them")

    async def prepare(self) -> None:
        """See ModelSession. Safe when several processes do it at once."""
        await self._database.write(self._prepare)

    async def balance(self, holding: Holding | None, reason: str | None) -> Holding:
        """See ModelSession."""

        @_database_away
        def work(connection: sa.Connection) -> Holding:
            return leases.balance(connection, self._claim, holding, reason, self._worker_plan)

        found = await self._database.write(work)
        self._renewed = time.monotonic()
        return found

    async def apply(
        self,
        holding: Holding,
        before: Collection[Checkpoint],
        work: Callable[[Tables, Settle | None], Outcome],
        *,
        one_by_one: bool = False,
    ) -> None:
        """See ModelSession: one transaction, in the writing thread."""
        try:
            await self._database.write(lambda connection: self._apply(connection, holding, before, work, one_by_one))
        except sa.exc.SQLAlchemyError as e:  # what comes from the batch itself has a type of ours by now
            raise GatheredFailed(f"the transaction could not be committed: {e}") from e

    async def leave(self, halted: str | None = None) -> None:
        """See ModelSession."""

        @_database_away
        def work(connection: sa.Connection) -> None:
            leases.leave(connection, self._claim, halted)

        await self._database.write(work)

    async def observe(self) -> Observation:
        """See ModelSession."""
        try:
            return await self._database.read(lambda connection: leases.observe(connection, self._claim))
        except sa.exc.SQLAlchemyError as e:
            if not await self._database.read(bookkeeping.exists):
                return Observation(checkpoints=(), held=False, halted=None)
            raise DatabaseAway(f"the bookkeeping cannot be used: {e}") from e

    async def parked_at(self, position: Position) -> ParkedEvent | None:
        """See ModelSession."""
        return await self._database.read(lambda connection: parked_rows.at(connection, self._claim, position))

    def parked_streams(self, handlers: Handlers) -> ParkedStreams:
        """See ModelSession."""
        return ParkedStreams(self._claim, handlers, self._database, self._catalog)

    def _apply(
        self,
        connection: sa.Connection,
        holding: Holding,
        before: Collection[Checkpoint],
        work: Callable[[Tables, Settle | None], Outcome],
        one_by_one: bool,
    ) -> None:
        entry = _Entry(_database_away(lambda: leases.check(connection, self._claim, holding.tokens, before)))
        tables = Tables(connection, self._catalog, entry.enter)
        began = time.monotonic()
        try:
            if self._slow:  # lock first: else another worker takes over in the middle, then this one from it, for ever
                entry.enter()
            step = tables.flush if one_by_one else _Touch(connection) if self._slow else None
            applied = work(tables, step)
            self._slow = time.monotonic() - began > self._claim.lease_s / 4
            entry.enter()
            tables.flush()
        except Exception as e:
            if entry.refused is not None:  # whatever a handler, and what called it, has made of that
                raise entry.refused from None
            if isinstance(e, CannotApply) and not (tables.failed and not one_by_one):
                raise
            # Not the event's fault, or not this one's: an execute() wrote what earlier events had gathered.
            raise GatheredFailed(e.reason if isinstance(e, CannotApply) else str(e)) from e
        finally:
            tables.end()
        self._store(connection, holding, applied)

    @_database_away
    def _store(self, connection: sa.Connection, holding: Holding, applied: Outcome) -> None:
        bookkeeping.store(connection, self._claim, applied.checkpoints, self._checkpoint_plan)
        if applied.parked:
            parked_rows.store(connection, self._claim, applied.parked, leases.time(connection))
        if time.monotonic() - self._renewed > self._claim.lease_s / 3:
            leases.renew(connection, self._claim, holding.tokens)
            self._renewed = time.monotonic()

    def _prepare(self, connection: sa.Connection) -> None:
        bookkeeping.create(connection)
        begun = bookkeeping.enroll(connection, self._claim)
        inspector, shadow = sa.inspect(connection), self._database.place.shadow
        mend = bookkeeping.mend(self._claim.projection)
        for table in self._metadata.tables.values():
            if inspector.has_table(table.name, schema=table.schema or shadow):
                found = {c["name"] for c in inspector.get_columns(table.name, schema=table.schema or shadow)}
                if missing := [c.name for c in table.columns if c.name not in found]:
                    raise ConfigurationError(
                        f"table {table.name!r} in {self._database.url!r} has no column {', '.join(missing)}, which the "
                        f"model of projection {self._claim.projection!r} has: it was made by an earlier definition. "
                        f"{mend}"
                    )
            elif begun:
                raise ConfigurationError(
                    f"table {table.name!r} is not in {self._database.url!r}, and the checkpoints of projection "
                    f"{self._claim.projection!r} say that it has been filled. {mend} If it is a new table of "
                    "another projection, give that projection a MetaData of its own."
                )
        self._metadata.create_all(connection)


class _Touch:
    """Shows the database now and then, between two events, that somebody is at work in the transaction.

    Else it would end the session for its silence (see evsync.liveness), where handlers that execute nothing are slow.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection, self._last = connection, time.monotonic()

    def __call__(self) -> None:
        """Between two events. An error shows at the next statement too, and is no event's fault there."""
        if (now := time.monotonic()) - self._last > IDLE_S / 6:
            self._last = now
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.execute(sa.select(1))


class _Entry:
    """The check of tokens and checkpoints at the beginning of a batch's transaction.

    The transaction begins with its first statement. Handlers that only gather need none, so that other workers can
    write meanwhile.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check, self._entered = check, False
        self.refused: Fenced | DatabaseAway | None = None

    def enter(self) -> None:
        """Check them unless that was done. Raises Fenced or DatabaseAway, each time."""
        if self._entered:
            return
        try:
            if self.refused is None:
                self._check()
        except (Fenced, DatabaseAway) as e:
            self.refused = e
        if self.refused is not None:
            raise self.refused
        self._entered = True
