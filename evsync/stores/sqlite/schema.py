"""The file of an SQLite store: its tables, how a connection to it is made, and whose it is."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from evsync.control import RESTORES_STREAM
from evsync.errors import ConfigurationError, StoreUnavailable, WrongStore
from evsync.records import STORE_FILE_ID, LogIdentity, StoredEvent
from evsync.restores import with_ancestry
from evsync.stores.sqlite.errors import is_busy

T = TypeVar("T")

SCHEMA = 1
"""Counts changes of the tables. A file with a greater number was written by a newer evsync."""

COLUMNS = ", ".join(StoredEvent._fields)
"""In the order of the fields, so that a row is a StoredEvent as it is."""

_EVENT = """
        stream      TEXT NOT NULL,
        version     INTEGER NOT NULL,
        slot        INTEGER NOT NULL,
        type        TEXT NOT NULL,
        time_us     INTEGER NOT NULL,
        id          BLOB NOT NULL,
        remaining   INTEGER NOT NULL,
        incarnation TEXT NOT NULL,
        data        BLOB NOT NULL,
        meta        TEXT,
        UNIQUE (stream, version)
"""
TABLES = (
    """
    CREATE TABLE log (
        only        INTEGER PRIMARY KEY CHECK (only = 1),
        schema      INTEGER NOT NULL,
        service     TEXT NOT NULL,
        shard       TEXT NOT NULL,
        incarnation TEXT NOT NULL,
        slots       INTEGER NOT NULL,
        trimmed     INTEGER NOT NULL,  -- position of the last event that was trimmed from the front: 0 for none
        moves       INTEGER NOT NULL  -- how often table slots was changed; 0: all slots are open here, in epoch 1
    )
    """,
    """
    CREATE TABLE slots (
        slot        INTEGER PRIMARY KEY,
        epoch       INTEGER NOT NULL,
        "to"        TEXT,  -- shard that it was closed for; NULL: it is open here
        position    INTEGER NOT NULL,
        length      INTEGER NOT NULL,
        digest      INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE arrivals (
        slot        INTEGER PRIMARY KEY,  -- one that is not open here
        length      INTEGER NOT NULL,
        digest      INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE imports (
        number      INTEGER PRIMARY KEY,
        "at"        INTEGER NOT NULL,  -- head of this log when it was imported
        position    INTEGER NOT NULL,  -- in the log that it was appended to
    """
    f"{_EVENT})",
    f"CREATE TABLE events (position INTEGER PRIMARY KEY, {_EVENT})",
    'CREATE INDEX imports_by_place ON imports ("at")',  # and number, with which every index ends
    """
    CREATE TABLE checkpoints (
        follower    TEXT NOT NULL,
        log         TEXT NOT NULL,
        "group"     INTEGER NOT NULL,
        incarnation TEXT NOT NULL,
        position    INTEGER NOT NULL,
        count       INTEGER NOT NULL,
        digest      INTEGER NOT NULL,  -- modulo 2**64, as the signed integer with the same bits
        PRIMARY KEY (follower, log, "group")
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE snapshots (
        stream      TEXT PRIMARY KEY,
        version     INTEGER NOT NULL,
        type        TEXT NOT NULL,
        shape       TEXT NOT NULL,
        latest_us   INTEGER NOT NULL,
        commands    BLOB NOT NULL,
        state       BLOB NOT NULL
    )
    """,
)


def connect(path: Path, *, create: bool, timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode, every commit of which is on the disk when it returns.

    `timeout_s` is how long SQLite itself waits for a lock. FULL makes it fsync the write-ahead log at each commit;
    NORMAL would lose acknowledged commits when the machine stops.
    """
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        # In pages: 16 MB. Events of many streams touch the same pages of the index again and again, and the longer the
        # write-ahead log, the fewer of them are copied into the database twice.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_write(path: Path) -> sqlite3.Connection:
    """A connection for commits on the event loop: it waits for no lock, and leaves the write-ahead log to others."""
    connection = connect(path, create=False, timeout_s=0)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def connect_to_read(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    """A connection to an existing store that cannot write by mistake."""
    connection = connect(path, create=False, timeout_s=timeout_s)
    connection.execute("PRAGMA query_only = ON")
    return connection


def check_path(name: str | os.PathLike[str], *, create: bool) -> Path:
    """The absolute path of the file. Raises what a person should hear before 'unable to open database file'."""
    path = Path(name).absolute()
    if "\0" in str(path):
        raise ConfigurationError(f"{str(name)!r} cannot be a path: it has a NUL character")
    try:
        is_directory, has_directory, exists = path.is_dir(), path.parent.is_dir(), path.exists()
    except OSError as e:  # a name that is too long, a directory that may not be searched
        raise ConfigurationError(f"{str(path)[:200]!r} cannot be a path: {e.strerror}") from e
    if is_directory:
        raise ConfigurationError(f"{path} is a directory: name a file in it, such as {path / 'events.db'}")
    if create and not has_directory:
        raise ConfigurationError(f"{path} cannot be made: there is no directory {path.parent}. Create it first.")
    if not create and not exists:
        if not has_directory:
            raise StoreUnavailable(
                f"there is no store at {path}, nor a directory {path.parent}: is the path right? What makes the store "
                "never makes the directory"
            )
        raise StoreUnavailable(f"there is no store at {path} (yet): its service makes it, or `evsync store init`")
    return path


def prepare(
    connection: sqlite3.Connection,
    path: Path,
    new: LogIdentity,
    *,
    create: bool,
    owns_slots: bool,
    patience_s: float,
) -> LogIdentity:
    """Make the tables of a `new` log where there are none, and say which log this is.

    Several processes may do this at once: one makes the tables, the others find them. A file that is not this log's
    is left as it is: raises WrongStore.
    """

    def attempt() -> LogIdentity:
        if not _is_store(connection, path):
            if not create:
                raise StoreUnavailable(f"{path} is still empty: its service makes the store, or `evsync store init`")
            _use_write_ahead_log(connection, path)
            connection.execute("BEGIN IMMEDIATE")
            if not _is_store(connection, path):  # otherwise another process was first
                make_tables(connection, new, owns_slots=owns_slots)
            connection.execute("COMMIT")
        identity = _identity(connection, path, new)
        _use_write_ahead_log(connection, path)
        return identity

    return patiently(attempt, patience_s)


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnavailable(
            f"{path} cannot use a write-ahead log (SQLite stays in mode {mode!r}): put it on a local disk, not on a "
            "network share"
        )


def begin(connection: sqlite3.Connection, patience_s: float) -> None:
    """Take the write lock: of all processes that append to this file, one at a time has it."""
    if patience_s > 0:
        patiently(lambda: connection.execute("BEGIN IMMEDIATE"), patience_s)
    else:
        connection.execute("BEGIN IMMEDIATE")


def patiently(attempt: Callable[[], T], patience_s: float) -> T:
    """Repeat what fails because of a lock, until the time has run out.

    SQLite's own busy handler backs off to 100 ms and is not asked everywhere (not for a change of the journal mode);
    a commit holds the lock for a millisecond or so, and this asks again after about as long.
    """
    deadline = time.monotonic() + patience_s
    pause_s = 0.0003
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as e:
            if not is_busy(e) or time.monotonic() >= deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.005)


def _is_store(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the tables are there; False for an empty file. Raises WrongStore for a database of something else."""
    # In this order: another process may make the tables and set the id, in one transaction, between the two questions.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id == STORE_FILE_ID:
        return True
    if application_id or tables:
        raise WrongStore(
            f"{path} is an SQLite database of something else (application id {application_id:#x}, {tables} tables and "
            "indexes); nothing was touched. An event store needs a file of its own: correct the store's URL."
        )
    return False


def make_tables(connection: sqlite3.Connection, identity: LogIdentity, *, owns_slots: bool = True) -> None:
    """Make the tables of an empty log."""
    for table in TABLES:
        connection.execute(table)
    connection.execute(
        "INSERT INTO log (only, schema, service, shard, incarnation, slots, trimmed, moves) "
        "VALUES (1, ?, ?, ?, ?, ?, 0, ?)",
        (SCHEMA, identity.service, identity.shard, identity.incarnation, identity.slots, 0 if owns_slots else 1),
    )
    connection.execute(f"PRAGMA application_id = {STORE_FILE_ID}")


def _identity(connection: sqlite3.Connection, path: Path, expected: LogIdentity) -> LogIdentity:
    # The schema's number first and alone: a newer evsync may have changed all other columns.
    (schema,) = connection.execute("SELECT schema FROM log").fetchone() or (None,)
    if schema is None:
        raise WrongStore(f"{path} is damaged: its table 'log' is empty. Restore the store from a backup.")
    if schema > SCHEMA:
        raise WrongStore(
            f"{path} was written by a newer evsync (its tables have version {schema}, this one knows {SCHEMA}); "
            "nothing was touched. Install the newer version here too."
        )
    row = connection.execute("SELECT service, shard, incarnation, slots FROM log").fetchone()
    identity = LogIdentity(*row)
    if identity.name != expected.name:
        raise WrongStore(
            f"{path} is the store of service {identity.service!r}, shard {identity.shard!r}, and was opened for "
            f"service {expected.service!r}, shard {expected.shard!r}; nothing was touched. Give each service and shard "
            "a file of its own."
        )
    restores = connection.execute(
        f"SELECT {COLUMNS} FROM events WHERE stream = ? ORDER BY version DESC LIMIT 1", (RESTORES_STREAM,)
    )
    return with_ancestry(identity, [StoredEvent(*row) for row in restores])
