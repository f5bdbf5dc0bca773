"""Slots of an SQLite store: who owns them, their histories, and the steps by which they move.

Each function is one transaction's work on a connection that holds the write lock, or a read.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from evsync.ports import Arrived, Place, SlotSize
from evsync.records import (
    OWN_STREAMS,
    SLOT_CLOSED,
    SLOT_OPENED,
    SLOTS_STREAM,
    Append,
    Commit,
    History,
    LogIdentity,
    NewEvent,
    Opening,
    SlotState,
    StoredEvent,
    new_command,
)
from evsync.stores import sqlite_statements as statements
from evsync.stores.plan import plan
from evsync.stores.sqlite_schema import COLUMNS

_IMPORT = f'INSERT INTO imports ("at", {COLUMNS}) VALUES (?{", ?" * len(StoredEvent._fields)})'


def states(c: sqlite3.Connection, identity: LogIdentity, moves: int) -> dict[int, SlotState]:
    """What the store says of each slot that is, or was, open in it."""
    if moves == 0:
        return dict.fromkeys(range(identity.slots), SlotState(1))
    return {
        slot: SlotState(epoch, to, position, History(length, digest))
        for slot, epoch, to, position, length, digest in c.execute(
            'SELECT slot, epoch, "to", position, length, digest FROM slots'
        )
    }


def moves_of(c: sqlite3.Connection) -> int:
    """How often the states have changed."""
    (moves,) = c.execute("SELECT moves FROM log").fetchone()
    return int(moves)


def arrivals(c: sqlite3.Connection, slots: Sequence[int]) -> dict[int, History]:
    """What has arrived of the slots' histories."""
    found = {slot: History() for slot in slots}
    for slot, length, digest in c.execute(
        f"SELECT slot, length, digest FROM arrivals WHERE slot IN ({_marks(slots)})", slots
    ):
        found[slot] = History(length, digest)
    return found


def history(c: sqlite3.Connection, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
    """The next events of these slots, own and imported, in the order in which they came."""
    marks = _marks(slots)
    rows = c.execute(
        f"""
        SELECT * FROM (
            SELECT position AS came, 0 AS number, {COLUMNS} FROM events
            WHERE position > ? AND slot IN ({marks}) AND substr(stream, 1, {len(OWN_STREAMS)}) <> '{OWN_STREAMS}'
            ORDER BY position LIMIT ?
        ) UNION ALL SELECT * FROM (
            SELECT "at" AS came, number, {COLUMNS} FROM imports
            WHERE ("at", number) > (?, ?) AND slot IN ({marks}) ORDER BY "at", number LIMIT ?
        ) ORDER BY came, number LIMIT ?
        """,
        (after[0], *slots, limit, *after, *slots, limit, limit),
    ).fetchall()
    return [((row[0], row[1]), StoredEvent(*row[2:])) for row in rows]


def size(c: sqlite3.Connection, identity: LogIdentity) -> SlotSize:
    """How much there is."""
    own = f"substr(stream, 1, {len(OWN_STREAMS)}) <> '{OWN_STREAMS}'"
    events, size_bytes = c.execute(
        f"SELECT count(*), coalesce(sum(length(data)), 0) FROM events WHERE {own}"
    ).fetchone()
    here = [slot for slot, state in states(c, identity, moves_of(c)).items() if state.to is None]
    (streams,) = c.execute(
        f"SELECT count(*) FROM (SELECT stream, slot FROM events WHERE {own} UNION SELECT stream, slot FROM imports) "
        f"WHERE slot IN ({', '.join(map(str, here))})"
    ).fetchone()
    return SlotSize(events, size_bytes, streams)


def bring(
    c: sqlite3.Connection, identity: LogIdentity, events: Sequence[StoredEvent], expected: Mapping[int, History]
) -> bool:
    """Import the events behind what is expected to have arrived; False, and nothing done, if that is not so."""
    slots = list(expected)
    known = states(c, identity, moves_of(c))
    if any(slot in known and known[slot].to is None for slot in slots):
        return False  # it is open here: somebody has finished the move
    if arrivals(c, slots) != dict(expected):
        return False
    head, _, _ = statements.look_up(c, statements.VERSION, [])
    c.executemany(_IMPORT, [(head, *e) for e in events])
    ids: dict[int, list[bytes]] = {slot: [] for slot in slots}
    for e in events:
        ids[e.slot].append(e.id)
    _keep_arrivals(c, {slot: expected[slot].with_ids(found) for slot, found in ids.items()})
    return True


def close(
    c: sqlite3.Connection,
    identity: LogIdentity,
    closing: Mapping[int, int],
    to: str,
    seen: int,
    histories: Mapping[int, History],
) -> dict[int, SlotState] | None:
    """Close slots, each into the epoch given, for the shard `to`. None, and nothing done, if one is not open before it.

    `histories` are those of the events up to position `seen` of this log.
    """
    moves = moves_of(c)
    known = states(c, identity, moves)
    if any((s := known.get(slot)) is None or s.to is not None or s.epoch + 1 != e for slot, e in closing.items()):
        return None
    slots = list(closing)
    ids: dict[int, list[bytes]] = {slot: [] for slot in slots}
    for slot, id in c.execute(
        f"SELECT slot, id FROM events WHERE position > ? AND slot IN ({_marks(slots)}) "
        f"AND substr(stream, 1, {len(OWN_STREAMS)}) <> '{OWN_STREAMS}' ORDER BY position",
        (seen, *slots),
    ):
        ids[slot].append(id)
    full = {slot: histories[slot].with_ids(found) for slot, found in ids.items()}
    first = _control(
        c,
        identity,
        SLOT_CLOSED,
        {
            slot: {"epoch": epoch, "to": to, "length": full[slot].length, "digest": full[slot].digest}
            for slot, epoch in closing.items()
        },
    )
    closed = {
        slot: SlotState(epoch, to, first + number, full[slot]) for number, (slot, epoch) in enumerate(closing.items())
    }
    _keep_states(c, {**known, **closed} if moves == 0 else closed)
    _keep_arrivals(c, full)
    return closed


def open_(c: sqlite3.Connection, identity: LogIdentity, opening: Mapping[int, Opening]) -> bool:
    """Open slots whose whole history has arrived. False, and nothing done, if one is further on or not complete."""
    moves = moves_of(c)
    known = states(c, identity, moves)
    if any(slot in known and known[slot].epoch >= o.epoch for slot, o in opening.items()):
        return False
    if arrivals(c, list(opening)) != {slot: o.history for slot, o in opening.items()}:
        return False
    _control(
        c,
        identity,
        SLOT_OPENED,
        {
            slot: {"epoch": o.epoch, "from": o.source, "incarnation": o.incarnation, "position": o.position}
            for slot, o in opening.items()
        },
    )
    _keep_states(c, {slot: SlotState(o.epoch) for slot, o in opening.items()})
    c.execute(f"DELETE FROM arrivals WHERE slot IN ({_marks(opening)})", list(opening))
    return True


def _control(c: sqlite3.Connection, identity: LogIdentity, type: str, data: Mapping[int, Mapping[str, Any]]) -> int:
    """Append one control event for each slot, in one commit; returns the position of the first."""
    now = time.time_ns() // 1000
    head, _, (version,) = statements.look_up(c, statements.VERSION, [(SLOTS_STREAM,)])
    appends = [
        Append(SLOTS_STREAM, slot, version + n, [NewEvent(f"{identity.service}.{type}", now, msgpack.packb(d), None)])
        for n, (slot, d) in enumerate(data.items())
    ]
    planned = plan(identity, head, {SLOTS_STREAM: version}, {}, [Commit(new_command(), appends)])
    statements.insert(c, planned.rows)
    return planned.rows[0].position


def _keep_states(c: sqlite3.Connection, found: Mapping[int, SlotState]) -> None:
    c.executemany(
        "INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?, ?, ?)",
        [(slot, s.epoch, s.to, s.position, *s.history) for slot, s in found.items()],
    )
    c.execute("UPDATE log SET moves = moves + 1")


def _keep_arrivals(c: sqlite3.Connection, found: Mapping[int, History]) -> None:
    c.executemany("INSERT OR REPLACE INTO arrivals VALUES (?, ?, ?)", [(slot, *h) for slot, h in found.items()])


def _marks(slots: Sequence[int] | Mapping[int, Any]) -> str:
    return ", ".join("?" * len(slots))
