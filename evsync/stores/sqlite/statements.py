"""The statements of an SQLite store. Each does its work for many rows at once: `store` says why."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import Any

from evsync.control import OWN_STREAMS
from evsync.ports import Share
from evsync.records import Checkpoint, Snapshot, StoredEvent
from evsync.stores import checkpoint_rows
from evsync.stores.database import Reads
from evsync.stores.slot_rows import STATE_COLUMNS
from evsync.stores.sqlite import schema

ROWS_PER_STATEMENT = 64
"""Rows of one INSERT: 704 parameters, below the 999 that the oldest SQLite in use takes."""

READ_LOG = f"SELECT {schema.COLUMNS} FROM events WHERE position > ?1 ORDER BY position LIMIT ?2"
# Evsync's own events, which are few, by the index of streams: the sign keeps SQLite from going by the positions.
END_OF_STRETCH = (
    "SELECT position + remaining FROM events WHERE position > ?1 AND position <= ?2 AND position + remaining < "
    f"coalesce((SELECT min(position) FROM events WHERE stream >= ?3 AND stream < ?4 AND +position > ?1), {2**63 - 1}) "
    "ORDER BY position DESC LIMIT 1"
)
_READ_STREAM = (
    f"SELECT {schema.COLUMNS} FROM events WHERE stream = ?3 AND version > ?1 AND version <= ?4 "
    "ORDER BY version LIMIT ?2"
)
_READ_CHANGES = (
    "SELECT position, version, type, time_us, data, meta FROM events WHERE stream = ?3 AND version > ?1 AND "
    "version <= ?4 ORDER BY version LIMIT ?2"
)


def _over_imports(read: str) -> str:
    """The same read over imports too, for a store that slots have moved from or to."""
    imports = read.replace(" FROM events ", " FROM imports ")
    return f"SELECT * FROM (SELECT * FROM ({read}) UNION ALL SELECT * FROM ({imports})) ORDER BY version LIMIT ?2"


# By whether a slot has moved.
READ_STREAM = {False: _READ_STREAM, True: _over_imports(_READ_STREAM)}
READ_CHANGES = {False: _READ_CHANGES, True: _over_imports(_READ_CHANGES)}
_SNAPSHOT = ", ".join(Snapshot._fields)
PUT_SNAPSHOT = (
    f"INSERT INTO snapshots ({_SNAPSHOT}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (stream) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in Snapshot._fields)
    + " WHERE snapshots.shape <> excluded.shape OR snapshots.version < excluded.version"
)
# The head is the greatest position, and no counter of its own: that would be one more page to write at every commit.
READ_HEAD = "SELECT coalesce((SELECT max(position) FROM events), trimmed) FROM log"
NOT_OWN = f"substr(stream, 1, {len(OWN_STREAMS)}) <> '{OWN_STREAMS}'"
READS = Reads(
    head=READ_HEAD,
    checkpoints=f"SELECT {checkpoint_rows.COLUMNS} FROM checkpoints WHERE follower = ? ORDER BY 1, 2",
    snapshot=f"SELECT {_SNAPSHOT} FROM snapshots WHERE stream = ?",
    moves="SELECT moves FROM log",
    states=f"SELECT {STATE_COLUMNS} FROM slots",
    size=f"SELECT count(*), coalesce(sum(length(data)), 0) FROM events WHERE {NOT_OWN}",
    streams=f"SELECT slot, count(*) FROM (SELECT stream, slot FROM events WHERE {NOT_OWN} "
    "UNION SELECT stream, slot FROM imports) GROUP BY slot",
    facts=f"SELECT schema, ({READ_HEAD}), (SELECT count(*) FROM events), (SELECT count(DISTINCT stream) FROM events), "
    "(SELECT count(*) FROM snapshots) FROM log",
    all_checkpoints=f"SELECT follower, {checkpoint_rows.COLUMNS} FROM checkpoints ORDER BY 1, 2, 3",
    trimmed="SELECT trimmed FROM log",
    goes_on="SELECT 1 FROM events WHERE stream = ? AND version > ? LIMIT 1",
    old_streams=f"SELECT stream, max(version) FROM events WHERE stream > ? AND {NOT_OWN} "
    "GROUP BY stream HAVING min(position) <= ? AND count(*) > 1 ORDER BY stream LIMIT ?",
)
VERSION = "(SELECT max(version) FROM events WHERE stream = ?)"
TAKEN = "EXISTS (SELECT 1 FROM events WHERE stream = ? AND version = ?)"
# Over imports too, for a store that slots have moved from or to. Each key is given twice.
VERSION_MOVED = f"max(coalesce({VERSION}, 0), coalesce({VERSION.replace('events', 'imports')}, 0))"
TAKEN_MOVED = f"({TAKEN} OR {TAKEN.replace('events', 'imports')})"
CHECKPOINT = '(SELECT position FROM checkpoints WHERE follower = ? AND log = ? AND "group" = ?)'

MANY = 2**63 - 1
"""More than any number of rows or versions: SQLite's greatest integer."""


@lru_cache(64)
def read_share(share: Share) -> str:
    """The events of a share behind position ?1 and up to ?3, the end of a commit, which is among them."""
    return (
        f"SELECT {schema.COLUMNS} FROM events WHERE position > ?1 AND position <= ?3 "
        f"AND ({_of(share)} OR position = ?3) ORDER BY position LIMIT ?2"
    )


@lru_cache(64)
def count_others(share: Share) -> str:
    """How many events between two positions are of other groups."""
    return f"SELECT count(*) FROM events WHERE position > ?1 AND position < ?2 AND NOT ({_of(share)})"


def _of(share: Share) -> str:
    return f"slot % {share.of} IN ({', '.join(map(str, sorted(share.groups)))})"


def look_up(c: sqlite3.Connection, expression: str, keys: Sequence[tuple[Any, ...]]) -> tuple[int, int, list[int]]:
    """The head of the log, how often slots have moved, and the value of the expression for each key (0 for none)."""
    values: list[int] = []
    for start in range(0, max(len(keys), 1), ROWS_PER_STATEMENT):
        part = keys[start : start + ROWS_PER_STATEMENT]
        head, moves, *found = c.execute(_select(expression, len(part)), list(chain.from_iterable(part))).fetchone()
        values += [value or 0 for value in found]
    return head, moves, values


@cache
def _select(expression: str, times: int) -> str:
    return "SELECT " + ", ".join([f"({READ_HEAD})", "(SELECT moves FROM log)", *[expression] * times])


@cache
def _insert(rows: int) -> str:
    row = f"({', '.join('?' * len(StoredEvent._fields))})"
    return f"INSERT INTO events ({schema.COLUMNS}) VALUES {', '.join([row] * rows)}"


def store_checkpoint(c: sqlite3.Connection, follower: str, checkpoint: Checkpoint) -> None:
    """Store a follower's checkpoint in place of the one before."""
    c.execute(
        f"INSERT OR REPLACE INTO checkpoints (follower, {checkpoint_rows.COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (follower, *checkpoint_rows.to_row(checkpoint)),
    )


def insert(c: sqlite3.Connection, rows: Sequence[StoredEvent]) -> None:
    """Write the events."""
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        part = rows[start : start + ROWS_PER_STATEMENT]
        c.execute(_insert(len(part)), list(chain.from_iterable(part)))
