"""The half of an SQLite store that moves slots: what it has of them, and the steps, each in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from evsync.control import FENCES_STREAM, SLOTS_STREAM
from evsync.ports import Arrived, Place
from evsync.records import History, SlotRows, SlotState, StoredEvent
from evsync.stores.database import DatabaseStore
from evsync.stores.slot_rows import ARRIVAL_COLUMNS, arrival_rows, arrived_of, history_of, state_rows
from evsync.stores.slot_steps import Decide, Fence, Found, SlotChange
from evsync.stores.sqlite import schema, statements

T = TypeVar("T")

_FENCE = "SELECT version, incarnation, data FROM events WHERE stream = ? ORDER BY version DESC LIMIT 1"
_IMPORT = f'INSERT INTO imports (number, "at", {schema.COLUMNS}) VALUES (?, ?{", ?" * len(StoredEvent._fields)})'
_IMPORTED = f'SELECT "at" AS came, number, {schema.COLUMNS} FROM imports'
# Imports in two parts, so that the index leads to the place: to compare both numbers at once would read all that came
# at the same position, which are most of them in a new shard.
_HISTORY = f"""
    SELECT * FROM (
        SELECT position AS came, 0 AS number, {schema.COLUMNS} FROM events
        WHERE position > ?1 AND slot IN (%(slots)s) AND {statements.NOT_OWN} ORDER BY position LIMIT ?3
    ) UNION ALL SELECT * FROM (
        {_IMPORTED} WHERE "at" = ?1 AND number > ?2 AND slot IN (%(slots)s) ORDER BY number LIMIT ?3
    ) UNION ALL SELECT * FROM (
        {_IMPORTED} WHERE "at" > ?1 AND slot IN (%(slots)s) ORDER BY "at", number LIMIT ?3
    ) ORDER BY came, number LIMIT ?3
"""


class MovableSlots(DatabaseStore):
    """What SqliteStore is too. Implements SlotStore, whose docstrings say what its methods do."""

    async def _in_thread(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read in one of the threads for that."""
        raise NotImplementedError

    async def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do this in the writer's thread, in line with appends; committed if it returns something."""
        raise NotImplementedError

    async def arrived(self, slots: Sequence[int]) -> Mapping[int, History]:
        """What has arrived of the histories of slots that are not open here."""
        return await self._in_thread(partial(_arrived, slots))

    async def slot_events(self, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
        """The next events of these slots, own and imported, in the order in which they came."""
        text = _HISTORY % {"slots": _list(slots)}
        return history_of(await self._in_thread(lambda c: c.execute(text, (*after, limit)).fetchall()))

    async def _step(
        self, slots: Sequence[int], decide: Decide, *, seen: int | None = None, logged: bool = True
    ) -> SlotChange | None:
        change = await self._transaction(partial(self._carry_out, slots, decide, seen))
        if change is not None and change.rows:
            self._tail.moved(change.rows[-1].position)
        return change

    def _carry_out(
        self, slots: Sequence[int], decide: Decide, seen: int | None, c: sqlite3.Connection
    ) -> SlotChange | None:
        head, moves, (version,) = statements.look_up(c, statements.VERSION, [(SLOTS_STREAM,)])
        later = f"SELECT slot, id FROM events WHERE position > ? AND slot IN ({_list(slots)}) AND {statements.NOT_OWN}"
        found = Found(
            moves=moves,
            states=self._states(c, moves),
            arrived=_arrived(slots, c),
            head=head,
            version=version,
            later=[] if seen is None else c.execute(f"{later} ORDER BY position", (seen,)).fetchall(),
            fence=next(map(Fence._make, c.execute(_FENCE, (FENCES_STREAM,))), None),
        )
        if (change := decide(found)) is not None:
            _write(c, change, head)
        return change

    def _versions(self, c: sqlite3.Connection, streams: Sequence[str]) -> tuple[int, int, list[int]]:
        """The head of the log, how often slots have moved, and the versions of streams: with imports where one has."""
        if not self._moved:
            found = statements.look_up(c, statements.VERSION, [(s,) for s in streams])
            if found[1] == 0:
                return found
        return statements.look_up(c, statements.VERSION_MOVED, [(s, s) for s in streams])

    def _states(self, c: sqlite3.Connection, moves: int) -> Mapping[int, SlotState]:
        return self._known(moves) or self._learned(moves, c.execute(statements.READS.states))


def put(c: sqlite3.Connection, rows: SlotRows) -> None:
    """Write what is said of slots in place of what was; `moves` is raised if any changes its state."""
    c.executemany("INSERT OR REPLACE INTO arrivals VALUES (?, ?, ?)", arrival_rows(rows.arrived))
    if rows.states:
        c.executemany("INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?, ?, ?)", state_rows(rows.states))
        c.execute("UPDATE log SET moves = moves + 1")


def import_at(c: sqlite3.Connection, arrived: Sequence[Arrived]) -> None:
    """Store imports, each in its place."""
    c.executemany(_IMPORT, [(number, at, *event) for (at, number), event in arrived])


def _write(c: sqlite3.Connection, change: SlotChange, head: int) -> None:
    statements.insert(c, change.rows)
    c.executemany(_IMPORT, [(None, head, *e) for e in change.imports])
    put(c, SlotRows(change.states, change.arrived))
    if change.states:
        c.executemany("DELETE FROM arrivals WHERE slot = ?", [(slot,) for slot in change.opened])


def _arrived(slots: Sequence[int], c: sqlite3.Connection) -> dict[int, History]:
    return arrived_of(slots, c.execute(f"SELECT {ARRIVAL_COLUMNS} FROM arrivals WHERE slot IN ({_list(slots)})"))


def _list(slots: Sequence[int]) -> str:
    return ", ".join(map(str, slots))
