"""Slots of an SQLite store: who owns them, their histories, and the steps by which they move.

Each function is one transaction's work on a connection that holds the write lock, or a read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from evsync.ports import Arrived, Place, SlotSize
from evsync.records import (
    FENCES_STREAM,
    OWN_STREAMS,
    SLOTS_STREAM,
    History,
    LogIdentity,
    SlotRows,
    SlotState,
    StoredEvent,
)
from evsync.stores.slot_steps import Decide, Fence, Found, SlotChange, unmoved
from evsync.stores.sqlite import statements
from evsync.stores.sqlite.schema import COLUMNS

_NOT_OWN = f"substr(stream, 1, {len(OWN_STREAMS)}) <> '{OWN_STREAMS}'"
_FENCE = "SELECT version, incarnation, data FROM events WHERE stream = ? ORDER BY version DESC LIMIT 1"
_IMPORT = f'INSERT INTO imports (number, "at", {COLUMNS}) VALUES (?, ?{", ?" * len(StoredEvent._fields)})'


def states(c: sqlite3.Connection, identity: LogIdentity, moves: int) -> dict[int, SlotState]:
    """What the store says of each slot that is, or was, open in it."""
    if moves == 0:
        return unmoved(identity.slots)
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
            WHERE position > ? AND slot IN ({marks}) AND {_NOT_OWN}
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
    events, size_bytes = c.execute(
        f"SELECT count(*), coalesce(sum(length(data)), 0) FROM events WHERE {_NOT_OWN}"
    ).fetchone()
    here = [slot for slot, state in states(c, identity, moves_of(c)).items() if state.to is None]
    (streams,) = c.execute(
        f"SELECT count(*) FROM (SELECT stream, slot FROM events WHERE {_NOT_OWN} "
        f"UNION SELECT stream, slot FROM imports) WHERE slot IN ({', '.join(map(str, here))})"
    ).fetchone()
    return SlotSize(events, size_bytes, streams)


def carry_out(
    c: sqlite3.Connection, identity: LogIdentity, slots: Sequence[int], decide: Decide, seen: int | None
) -> SlotChange | None:
    """Decide on a step, and write what was decided; None, and nothing written, if the step cannot be."""
    head, moves, (version,) = statements.look_up(c, statements.VERSION, [(SLOTS_STREAM,)])
    later: list[tuple[int, bytes]] = []
    if seen is not None:
        later = c.execute(
            f"SELECT slot, id FROM events WHERE position > ? AND slot IN ({_marks(slots)}) AND {_NOT_OWN} "
            "ORDER BY position",
            (seen, *slots),
        ).fetchall()
    change = decide(
        Found(
            moves=moves,
            states=states(c, identity, moves),
            arrived=arrivals(c, slots),
            head=head,
            version=version,
            later=later,
            fence=next(map(Fence._make, c.execute(_FENCE, (FENCES_STREAM,))), None),
        )
    )
    if change is None:
        return None
    statements.insert(c, change.rows)
    c.executemany(_IMPORT, [(None, head, *e) for e in change.imports])
    put(c, SlotRows(change.states, change.arrived))
    if change.states:
        c.executemany("DELETE FROM arrivals WHERE slot = ?", [(slot,) for slot in change.opened])
    return change


def put(c: sqlite3.Connection, rows: SlotRows) -> None:
    """Write what is said of slots in place of what was; `moves` is raised if any changes its state."""
    c.executemany("INSERT OR REPLACE INTO arrivals VALUES (?, ?, ?)", [(s, *h) for s, h in rows.arrived.items()])
    if rows.states:
        c.executemany(
            "INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?, ?, ?)",
            [(slot, s.epoch, s.to, s.position, *s.history) for slot, s in rows.states.items()],
        )
        c.execute("UPDATE log SET moves = moves + 1")


def import_at(c: sqlite3.Connection, arrived: Sequence[Arrived]) -> None:
    """Store imports, each in its place."""
    c.executemany(_IMPORT, [(number, at, *event) for (at, number), event in arrived])


def _marks(slots: Sequence[int]) -> str:
    return ", ".join("?" * len(slots))
