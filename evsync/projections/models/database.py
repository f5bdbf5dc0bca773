"""The database that holds read models: one thread that writes, a few that answer queries."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from typing_extensions import TypeVarTuple

from evsync.errors import StoreUnavailable
from evsync.projections.failures import DatabaseAway
from evsync.projections.models.engines import READERS, ViewsPlace, away

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ViewsDatabase:
    """The read models' database behind a URL: `sqlite:///views.db`, `sqlite://` for one in memory, or
    `postgresql://user@host/database?schema=…`.

    Inert until first used. One thread writes, one transaction after the other: SQLite has room for one writer, and a
    queue in the process is fairer than its lock. Queries run beside it and see what was committed. In memory there is
    one connection, so there queries wait for their turn between two batches.
    """

    def __init__(self, url: str | ViewsPlace) -> None:
        """Raises ConfigurationError for a URL that cannot be one of a supported database. Nothing is opened yet."""
        self.place = place = url if isinstance(url, ViewsPlace) else ViewsPlace.of(url)
        self.url, self._in_memory = place.url, place.in_memory
        self._write_engine = place.engine(readers=0)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="evsync-views")
        if self._in_memory:
            self._read_engine, self._readers = self._write_engine, self._writer
        else:
            self._read_engine = place.engine(readers=READERS)
            self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="evsync-query")

    def __repr__(self) -> str:
        return f"<ViewsDatabase {self.url!r}>"

    @property
    def dialect(self) -> sa.Dialect:
        """SQLAlchemy's dialect of the database."""
        return self._write_engine.dialect

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in the writing thread, in a transaction of its own that nobody else of this process writes beside.

        It begins with the first statement: what `work` does before that keeps no other process from writing. Committed
        when it returns, rolled back when `work` raises. Raises DatabaseAway when the database does not answer, is
        locked or is full. When the caller is cancelled, the transaction is brought to its end first.
        """

        def transaction() -> T:
            with self._write_engine.connect() as connection:
                done = work(connection)
                try:
                    connection.commit()
                except sa.exc.DBAPIError:
                    # A deferred constraint fails here, and leaves SQLite in the transaction that SQLAlchemy takes to be
                    # over: the next one could not begin.
                    if not connection.invalidated:
                        connection.connection.rollback()
                    raise
                return done

        return await self._run(self._writer, self._write_engine, transaction)

    async def write_beside(self, file: Path, name: str, work: Callable[[sa.Connection], T]) -> T:
        """As `write`, with another file of SQLite attached under a name, which `work` can read too."""

        def transaction() -> T:
            with self._write_engine.connect() as connection:
                driver: Any = connection.connection.dbapi_connection
                driver.execute(f"ATTACH DATABASE ? AS {name}", (str(file),))
                try:
                    with connection.begin():
                        return work(connection)
                finally:
                    driver.execute(f"DETACH DATABASE {name}")

        return await self._run(self._writer, self._write_engine, transaction)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a reading thread, in a transaction that sees one moment and can change nothing."""

        def transaction() -> T:
            with self._read_engine.connect() as connection:
                return work(connection)

        return await self._run(self._readers, self._read_engine, transaction)

    async def query(self, select: sa.Select[*Ts]) -> sa.Result[*Ts]:
        """The rows of a select, complete in memory.

        Raises StoreUnavailable when the database does not answer, SQLAlchemy's own errors for a wrong statement.
        """
        try:
            return await self.read(lambda connection: connection.execute(select).freeze()())
        except DatabaseAway as e:
            raise StoreUnavailable(f"the read models cannot be queried now: {e}") from e

    async def close(self) -> None:
        """Wait for what is under way, and close every connection. Calling twice is fine."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._write_engine.dispose()
        self._read_engine.dispose()

    async def _run(self, threads: ThreadPoolExecutor, engine: sa.Engine, transaction: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(threads, transaction)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # A thread cannot be stopped. Whoever goes on after the cancellation must not meet its transaction.
            await asyncio.wait([running])
            with contextlib.suppress(Exception):
                running.result()
            raise
        except Exception as e:
            if (reason := away(e)) is None or (threads is self._readers and "readonly" in reason.replace("-", "")):
                raise  # a statement that writes, where only queries are answered, is wrong however often it is tried
            if not self._in_memory:
                engine.dispose()  # the next attempt connects anew
            raise DatabaseAway(f"{self.url!r}: {reason}") from e
