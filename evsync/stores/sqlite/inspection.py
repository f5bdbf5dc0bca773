"""What an SQLite store holds, for those who look at it from outside."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from evsync.inspection import StoreFacts
from evsync.stores.checkpoint_rows import COLUMNS, from_row
from evsync.stores.sqlite.statements import READ_HEAD

_COUNTS = f"""
    SELECT schema, ({READ_HEAD}), (SELECT count(*) FROM events),
        (SELECT count(DISTINCT stream) FROM events), (SELECT count(*) FROM snapshots) FROM log
"""
_CHECKPOINTS = f"SELECT follower, {COLUMNS} FROM checkpoints ORDER BY 1, 2, 3"


def facts(path: Path, c: sqlite3.Connection) -> StoreFacts:
    """How much it holds."""
    schema, head, events, streams, snapshots = c.execute(_COUNTS).fetchone()
    size_bytes = 0
    for file in (path, path.with_name(f"{path.name}-wal")):
        with contextlib.suppress(OSError):
            size_bytes += file.stat().st_size
    return StoreFacts(
        kind="SQLite",
        where=str(path),
        schema=schema,
        head=head,
        events=events,
        streams=streams,
        size_bytes=size_bytes,
        snapshots=snapshots,
        checkpoints=[(follower, from_row(*row)) for follower, *row in c.execute(_CHECKPOINTS)],
    )


def integrity(c: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file, its indexes included; the first few things."""
    return [text for (text,) in c.execute("PRAGMA integrity_check(5)") if text != "ok"]
