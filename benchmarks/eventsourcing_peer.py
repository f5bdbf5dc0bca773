"""The eventsourcing library as it is used by itself: an application on SQLite, as durable as evsync's store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.sqlite import SQLiteApplicationRecorder

FULL = 2


@contextmanager
def application(path: Path) -> Iterator[Application[UUID]]:
    """An application whose events are in the file. Raises RuntimeError if it is not as durable as evsync."""
    app: Application[UUID] = Application(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path), "SQLITE_LOCK_TIMEOUT": "60"}
    )
    try:
        _check_durability(cast(SQLiteApplicationRecorder, app.recorder))
        yield app
    finally:
        app.close()


def _check_durability(recorder: SQLiteApplicationRecorder) -> None:
    """The library sets no `synchronous`: SQLite's own default counts, which is a matter of how it was built."""
    with recorder.datastore.transaction(commit=False) as cursor:
        found = []
        for pragma in ("journal_mode", "synchronous"):
            cursor.execute(f"PRAGMA {pragma}")
            found.append(cursor.fetchone()[0])
    if found != ["wal", FULL]:
        raise RuntimeError(
            f"eventsourcing's SQLite connection has journal_mode and synchronous {found}, not ['wal', {FULL}]: "
            "the comparison would not be fair"
        )
