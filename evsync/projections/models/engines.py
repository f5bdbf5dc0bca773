"""Where read models are kept: the databases that are supported, how they are connected to, and when they are away."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from evsync.errors import ConfigurationError
from evsync.liveness import CLIENT, VIEWS, server_settings

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
_AWAY_STATES = ("08", "25P0", "40", "53", "55", "57", "58")
"""PostgreSQL's classes of errors that pass, or that an operator mends: connection, deadlock, resources, locks, and that
a transaction took too long."""
_FORMS = "use 'sqlite:///views.db', 'sqlite://' for one in memory, or 'postgresql://user:password@host/db?schema=views'"


@dataclass(frozen=True, slots=True)
class ViewsPlace:
    """A database for read models."""

    url: sa.URL
    schema: str | None = None
    """In PostgreSQL: where the tables are, made if it is not there. None: the role's own search path."""
    shadow: str | None = None
    """In PostgreSQL: a schema that hides that one, where tables of the same names are made and found."""

    @classmethod
    def of(cls, text: str) -> Self:
        """From a URL. Raises ConfigurationError, without a password, for one that cannot be right."""
        try:
            url = sa.make_url(text)
        except (sa.exc.ArgumentError, TypeError) as e:
            shown = "what was given" if "@" in str(text) else repr(text)
            raise ConfigurationError(f"{shown} is not the URL of a database for read models; {_FORMS}") from e
        backend = url.drivername.partition("+")[0]
        if url.drivername in ("sqlite", "sqlite+pysqlite"):
            _check_file(url)
            return cls(url)
        if backend in ("postgresql", "postgres") and url.drivername in (backend, f"{backend}+psycopg"):
            schema = url.query.get("schema")
            if isinstance(schema, tuple) or schema == "":
                raise ConfigurationError(f"{url!r}: give one schema, or none")
            return cls(url.set(drivername="postgresql+psycopg").difference_update_query(["schema"]), schema)
        raise ConfigurationError(f"{url!r}: read models are kept in SQLite or PostgreSQL; {_FORMS}")

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite; else it is PostgreSQL."""
        return self.url.drivername.startswith("sqlite")

    @property
    def in_memory(self) -> bool:
        """Whether it lives in this process only."""
        return self.is_sqlite and self.url.database in (None, "", ":memory:")

    @contextmanager
    def opened(self) -> Iterator[sa.Connection]:
        """A connection of its own that writes, in a transaction that is committed when the block ends."""
        engine = self.engine(readers=0)
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    def engine(self, *, readers: int) -> sa.Engine:
        """For so many connections that can only read; 0: for one that writes."""
        if self.is_sqlite:
            return _sqlite(self.url, self.in_memory, readers=readers)
        return _postgres(self.url, self.schema, self.shadow, readers=readers)


def away(error: BaseException) -> str | None:
    """What the database said, if the error (or what caused it) means that it cannot be reached or used just now."""
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, sa.exc.TimeoutError):
            return str(seen)
        if isinstance(seen, sqlite3.Error) and (code := getattr(seen, "sqlite_errorcode", 0) & 0xFF) in _AWAY:
            return f"{seen} (is the disk, or a quota, full?)" if code == sqlite3.SQLITE_IOERR else str(seen)
        if isinstance(seen, sa.exc.DBAPIError) and seen.connection_invalidated:
            return str(seen.orig)
        if isinstance(seen, (sa.exc.OperationalError, sa.exc.InternalError)) and not isinstance(
            seen.orig, sqlite3.Error
        ):
            state = getattr(seen.orig, "sqlstate", None)
            if state is None or state.startswith(_AWAY_STATES):  # without a state the server never answered
                return str(seen.orig)
        if seen is None:
            return None
        seen = seen.__cause__
    return None


def _check_file(url: sa.URL) -> None:
    if url.database in (None, "", ":memory:"):
        return
    try:
        directory = Path(str(url.database)).resolve().parent
        exists = directory.is_dir()
    except (OSError, ValueError) as e:  # a name that is too long, or has a NUL character
        raise ConfigurationError(f"{str(url)[:200]!r} cannot be the URL of a file: {e}") from e
    if not exists:
        raise ConfigurationError(f"{url!r}: the directory {directory} does not exist; make it first")


def _postgres(url: sa.URL, schema: str | None, shadow: str | None, *, readers: int) -> sa.Engine:
    """Read models in PostgreSQL wait for no disk either, for the same reason as in SQLite: see `_write_ahead`."""
    options: dict[str, Any] = {**CLIENT, "connect_timeout": int(BUSY_S), "application_name": VIEWS}
    given = {name: value for name, value in options.items() if name not in url.query}
    try:
        engine = sa.create_engine(
            url, connect_args=given, pool_size=readers or 1, max_overflow=0, pool_timeout=BUSY_S, pool_pre_ping=True
        )
    except ModuleNotFoundError as e:
        raise ConfigurationError(f"PostgreSQL needs its driver: pip install 'evsync[postgres]' ({e})") from e
    path = [engine.dialect.identifier_preparer.quote_identifier(s) for s in (schema, shadow) if s is not None]
    if shadow is not None:
        # Statements that SQLAlchemy writes name the shadow, so that what it hides is not taken for what is in it.
        engine = engine.execution_options(schema_translate_map={None: shadow})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            if schema is not None and shadow is None:  # a shadow is made by whoever fills it, in one step with its mark
                cursor.execute("SELECT to_regnamespace(%s) IS NULL", (path[0],))
                if cursor.fetchone()[0] and not readers:
                    _create_schema(connection, path[0])
            if schema is not None:
                cursor.execute(f"SET search_path = {path[0]}")
            if shadow is not None:
                cursor.execute("SHOW search_path")
                cursor.execute(f"SET search_path = {path[-1]}, {cursor.fetchone()[0]}")
            cursor.execute("SET synchronous_commit = off")
            cursor.execute(server_settings())
            if readers:
                cursor.execute("SET default_transaction_read_only = on")
        connection.commit()

    return engine


def _create_schema(connection: Any, quoted: str) -> None:
    try:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
        connection.commit()
    except Exception as e:
        # "Unique violation": another process made it at the same moment, which IF NOT EXISTS does not cover.
        if getattr(e, "sqlstate", None) != "23505":
            raise
        connection.rollback()


def _sqlite(url: sa.URL, in_memory: bool, *, readers: int) -> sa.Engine:
    patience_s = BUSY_S if readers else 0  # a writer waits in `_begin_to_write`
    options: dict[str, Any] = {"connect_args": {"timeout": patience_s, "check_same_thread": False}}
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
        if readers:
            connection.exec_driver_sql("BEGIN")
        else:
            _begin_to_write(connection)

    return engine


def _begin_to_write(connection: sa.Connection) -> None:
    """Take the write lock at once: who began by reading could find that it must not write any more.

    Another worker holds it for some milliseconds at a time. SQLite's own busy handler asks after 1, 2, 5, 10, 15, 20, …
    ms, and so sleeps through most of the time in which the file is free.
    """
    deadline = time.monotonic() + BUSY_S
    pause_s = 0.0003
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        except sa.exc.OperationalError as e:
            code = getattr(e.orig, "sqlite_errorcode", 0) & 0xFF
            if code != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(1.3 * pause_s, 0.002)


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
