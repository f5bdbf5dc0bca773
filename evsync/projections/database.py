"""The database that holds read models: one thread that writes, a few that answer queries."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool
from typing_extensions import TypeVarTuple

from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.projections.read_model import DatabaseAway

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

READERS = 4
BUSY_S = 5.0
"""How long a transaction waits for another process's before it gives up, to be tried again by the runner."""

_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
"""What SQLite says when the trouble is the file, the disk or another process, never the statement."""


class ViewsDatabase:
    """The read models' database behind a SQLAlchemy URL: `sqlite:///views.db`, or `sqlite://` for one in memory.

    Inert until first used. One thread writes, one transaction after the other: SQLite has room for one writer, and a
    queue in the process is fairer than its lock. Queries run beside it and see what was committed. In memory there is
    one connection, so there queries wait for their turn between two batches.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError for a URL that cannot be one of a supported database. Nothing is opened yet."""
        self.url = _parse(url)
        self._in_memory = self.url.database in (None, "", ":memory:")
        self._write_engine = _engine(self.url, self._in_memory, readers=0)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="evsync-views")
        if self._in_memory:
            self._read_engine, self._readers = self._write_engine, self._writer
        else:
            self._read_engine = _engine(self.url, self._in_memory, readers=READERS)
            self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="evsync-query")

    def __repr__(self) -> str:
        return f"<ViewsDatabase {self.url!r}>"

    @property
    def dialect(self) -> sa.Dialect:
        """SQLAlchemy's dialect of the database."""
        return self._write_engine.dialect

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in the writing thread, in a transaction of its own that nobody else can write beside.

        Committed when it returns, rolled back when `work` raises. Raises DatabaseAway when the database does not
        answer, is locked or is full. When the caller is cancelled, the transaction is brought to its end first.
        """

        def transaction() -> T:
            with self._write_engine.begin() as connection:
                return work(connection)

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
            if (reason := away(e)) is None or (threads is self._readers and "readonly" in reason):
                raise  # a statement that writes, where only queries are answered, is wrong however often it is tried
            if not self._in_memory:
                engine.dispose()  # the next attempt opens the file anew
            raise DatabaseAway(f"{self.url!r}: {reason}") from e


def away(error: BaseException) -> str | None:
    """What the database said, if the error (or what caused it) means that it cannot be reached or used just now."""
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, sa.exc.TimeoutError):
            return str(seen)
        if isinstance(seen, sqlite3.Error) and getattr(seen, "sqlite_errorcode", 0) & 0xFF in _AWAY:
            return str(seen)
        if isinstance(seen, sa.exc.DBAPIError) and seen.connection_invalidated:
            return str(seen.orig)
        if seen is None:
            return None
        seen = seen.__cause__
    return None


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, TypeError) as e:
        raise ConfigurationError(
            f"{url!r} is not the URL of a database for read models; use 'sqlite:///views.db', or 'sqlite://' for one "
            "in memory"
        ) from e
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ConfigurationError(
            f"{parsed!r}: this version of evsync keeps read models in SQLite; use 'sqlite:///views.db', or 'sqlite://' "
            "for one in memory"
        )
    if parsed.database not in (None, "", ":memory:"):
        try:
            directory = Path(str(parsed.database)).resolve().parent
            exists = directory.is_dir()
        except (OSError, ValueError) as e:  # a name that is too long, or has a NUL character
            raise ConfigurationError(f"{url[:200]!r} cannot be the URL of a file: {e}") from e
        if not exists:
            raise ConfigurationError(f"{parsed!r}: the directory {directory} does not exist; make it first")
    return parsed


def _engine(url: sa.URL, in_memory: bool, *, readers: int) -> sa.Engine:
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY_S, "check_same_thread": False}}
    if in_memory:
        options["poolclass"] = StaticPool  # one connection for all: another would be another database
    else:
        options.update(pool_size=readers or 1, max_overflow=0, pool_timeout=BUSY_S)
    engine = sa.create_engine(url, **options)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver would begin transactions too late, and not the kind we need
        connection.execute("PRAGMA foreign_keys = ON")
        if readers:
            connection.execute("PRAGMA query_only = ON")
        else:
            _write_ahead(connection)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A writer takes the lock at once: one that began by reading could find that it must not write any more.
        connection.exec_driver_sql("BEGIN" if readers else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Let readers and the writer work beside each other, and leave fsync to checkpoints of the write-ahead log.

    synchronous=NORMAL may lose the last transactions when the power fails, whole and from the end. That is safe here:
    the checkpoint is in the same transaction as what it counts, so the projection goes on from where the database is,
    and the events themselves are durable in the log.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError:
            # Two processes that make the file at the same moment: the busy timeout does not cover this statement.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")
    # Catching up touches rows all over the tables. SQLite's defaults (2 MB of cache, 4 MB of log before it is copied
    # back) read and copy the same pages again and again: measured, these are worth 15 %.
    connection.execute("PRAGMA cache_size = -32000")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
