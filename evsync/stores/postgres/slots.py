"""The half of a PostgreSQL store that moves slots: what it says of them, and the steps, each in one transaction.

Whoever changes slots locks table `arrivals` against others who do; who appends to the log besides locks its counter, as
every append does. So writers wait for closing and opening, which is short, and never for what is copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from evsync.errors import SlotMoved, StoreUnavailable
from evsync.ports import Arrived, SlotSize
from evsync.records import (
    FENCES_STREAM,
    OWN_STREAMS,
    SLOTS_STREAM,
    Change,
    History,
    SlotRows,
    SlotState,
    StoredEvent,
)
from evsync.stores.postgres.connections import Connections, replaced, words
from evsync.stores.postgres.schema import COLUMN_TYPES, COLUMNS
from evsync.stores.slot_steps import Decide, Fence, Found, SlotChange, Steps, unmoved
from evsync.stores.tail import Tail
from evsync.tasks import end_task

MANY = 2**63 - 1
CHANGES_PER_READ = 2_048
"""Events of one round trip when an aggregate is read."""

_CHANGE = "position, version, type, time_us, data, meta"
_OF_STREAM = "FROM {schema}.%s WHERE stream = %%(stream)s AND version > %%(after)s AND version <= %%(to)s"
_OWN, _IMPORTED = _OF_STREAM % "events", _OF_STREAM % "imports"
_END = "ORDER BY version LIMIT %(limit)s"


def _over_imports(columns: str) -> str:
    return f"SELECT * FROM (SELECT {columns} {_OWN} UNION ALL SELECT {columns} {_IMPORTED}) e {_END}"


def _with_moves(read: str) -> str:
    # A row of a version below all others says how often slots had moved when the rest was read. Put in order by whoever
    # reads: the database would sort again what is sorted but for that row.
    return (
        "SELECT moves AS position, -1::bigint AS version, ''::text AS type, 0::bigint AS time_us, ''::bytea AS data, "
        f"NULL::text AS meta FROM {{schema}}.log UNION ALL SELECT * FROM ({read}) e"
    )


# By whether a slot has moved.
READ_STREAM = {False: f"SELECT {COLUMNS} {_OWN} {_END}", True: _over_imports(COLUMNS)}
READ_CHANGES = {False: f"SELECT {_CHANGE} {_OWN} {_END}", True: _over_imports(_CHANGE)}
READ_OPEN = {moved: _with_moves(read) for moved, read in READ_CHANGES.items()}

_NOT_OWN = f"NOT starts_with(stream, '{OWN_STREAMS}')"
_STATES = 'SELECT slot, epoch, "to", position, length, digest FROM {schema}.slots'
_ARRIVALS = "SELECT slot, length, digest FROM {schema}.arrivals WHERE slot = ANY(%s)"
_HISTORY = f"""
    SELECT * FROM (
        (SELECT position AS came, 0::bigint AS number, {COLUMNS} FROM {{schema}}.events
            WHERE position > %(came)s AND slot = ANY(%(slots)s) AND {_NOT_OWN} ORDER BY position LIMIT %(limit)s)
        UNION ALL
        (SELECT "at" AS came, number, {COLUMNS} FROM {{schema}}.imports
            WHERE ("at", number) > (%(came)s, %(number)s) AND slot = ANY(%(slots)s)
            ORDER BY "at", number LIMIT %(limit)s)
    ) e ORDER BY came, number LIMIT %(limit)s
"""
_SIZE = f"SELECT count(*), coalesce(sum(length(data)), 0)::bigint FROM {{schema}}.events WHERE {_NOT_OWN}"
_STREAMS_HERE = f"""
    SELECT count(*) FROM (
        SELECT stream, slot FROM {{schema}}.events WHERE {_NOT_OWN} UNION SELECT stream, slot FROM {{schema}}.imports
    ) streams WHERE slot = ANY(%s)
"""
_LOCK = "LOCK TABLE {schema}.arrivals IN SHARE ROW EXCLUSIVE MODE"
_LOG = """
    SELECT incarnation, moves, head, (SELECT coalesce(max(version), 0) FROM {schema}.events WHERE stream = %s)
    FROM {schema}.log
"""
_LATER = f"""
    SELECT slot, id FROM {{schema}}.events WHERE position > %s AND slot = ANY(%s) AND {_NOT_OWN} ORDER BY position
"""
_FENCE = """
    SELECT version, incarnation, data FROM {schema}.events WHERE stream = %s ORDER BY version DESC LIMIT 1
"""
_INSERT = f"INSERT INTO {{schema}}.events ({COLUMNS}) VALUES ({', '.join(['%b'] * len(StoredEvent._fields))})"
_IMPORT = f'COPY {{schema}}.imports ("at", {COLUMNS}) FROM STDIN (FORMAT binary)'
_PUT_ARRIVALS = """
    INSERT INTO {schema}.arrivals SELECT * FROM unnest(%s::int[], %s::bigint[], %s::bigint[])
    ON CONFLICT (slot) DO UPDATE SET (length, digest) = (excluded.length, excluded.digest)
"""
_PUT_STATES = """
    INSERT INTO {schema}.slots
    SELECT * FROM unnest(%s::int[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[])
    ON CONFLICT (slot) DO UPDATE SET (epoch, "to", position, length, digest) =
        (excluded.epoch, excluded."to", excluded.position, excluded.length, excluded.digest)
"""
_MOVED = "UPDATE {schema}.log SET (head, moves) = (%s, moves + %s)"


class MovableSlots(Steps):
    """What PostgresStore is too. Implements SlotStore, whose docstrings say what its methods do."""

    _database: Connections
    _tail: Tail
    _channel: str
    _known_slots: tuple[int, Mapping[int, SlotState]]
    """As of which move, and the states then ({}: not read yet)."""
    _schema_name: sql.Identifier
    _composed: dict[str, sql.Composed]

    async def _fetch(self, query: sql.Composed, parameters: Any) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def _check_open(self) -> None:
        raise NotImplementedError

    def _sql(self, text: str) -> sql.Composed:
        found = self._composed.get(text)
        if found is None:
            found = self._composed[text] = sql.SQL(text).format(schema=self._schema_name)
        return found

    async def slot_states(self) -> Mapping[int, SlotState]:
        """What the store says of each slot that is, or was, open in it."""
        ((moves,),) = await self._fetch(self._sql("SELECT moves FROM {schema}.log"), ())
        known, states = self._known_slots
        if known != moves or not states:
            # Read after `moves`: what is newer than that is read once more by whoever sees `moves` rise.
            states = _states(await self._fetch(self._sql(_STATES), ())) if moves else unmoved(self.identity.slots)
            self._known_slots = moves, states
        return states

    async def slot_state(self, slot: int) -> SlotState | None:
        """What the store says of one slot now."""
        return (await self.slot_states()).get(slot)

    async def arrived(self, slots: Sequence[int]) -> Mapping[int, History]:
        """What has arrived of the histories of slots that are not open here."""
        return _arrived(slots, await self._fetch(self._sql(_ARRIVALS), (list(slots),)))

    async def slot_events(self, slots: Sequence[int], after: tuple[int, int], limit: int) -> list[Arrived]:
        """The next events of these slots, own and imported, in the order in which they came."""
        came, number = after
        parameters = {"came": came, "number": number, "slots": list(slots), "limit": limit}
        rows = await self._fetch(self._sql(_HISTORY), parameters)
        return [((row[0], row[1]), StoredEvent(*row[2:])) for row in rows]

    async def slot_size(self) -> SlotSize:
        """How much there is in the store."""
        here = [slot for slot, state in (await self.slot_states()).items() if state.to is None]
        ((events, size_bytes),) = await self._fetch(self._sql(_SIZE), ())
        ((streams,),) = await self._fetch(self._sql(_STREAMS_HERE), (here,))
        return SlotSize(events, size_bytes, streams)

    async def read_open(
        self, stream: str, slot: int, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """The changes of a stream whose slot is open here: see ReadsOpenSlots. A slice is a round trip."""
        while True:
            moves, states = self._known_slots
            if moves and not states:
                await self.slot_states()
                continue
            found = await self._of_stream(READ_OPEN, stream, after_version, to_version)
            found.sort(key=itemgetter(1))
            (as_of, *_), *changes = found or [(moves,)]
            if as_of != moves:
                await self.slot_states()
                continue
            state = states.get(slot) if moves else SlotState(1)
            if state is None or state.to is not None:
                raise SlotMoved(stream, slot, state.to if state is not None else None)
            break
        async for part in self._slices(changes, stream, to_version):
            yield part

    async def _slices(
        self, changes: Sequence[Change], stream: str, to_version: int | None
    ) -> AsyncIterator[Sequence[Change]]:
        """These changes and what follows them. The database looks for the next slice while this one is folded."""
        while changes:
            if len(changes) < CHANGES_PER_READ:
                yield changes
                return
            following = asyncio.create_task(self._of_stream(READ_CHANGES, stream, changes[-1][1], to_version))
            try:
                await asyncio.sleep(0)  # the question goes out
                yield changes
                changes = await following
            finally:
                await end_task(following)

    async def _of_stream(
        self,
        queries: Mapping[bool, str],
        stream: str,
        after_version: int,
        to_version: int | None,
        limit: int = CHANGES_PER_READ,
    ) -> list[Any]:
        if "\0" in stream:
            return []
        until = MANY if to_version is None else min(to_version, MANY)
        query = self._sql(queries[self._known_slots[0] > 0])
        return await self._fetch(query, {"stream": stream, "after": after_version, "to": until, "limit": limit})

    async def _step(
        self, slots: Sequence[int], decide: Decide, *, seen: int | None = None, logged: bool = True
    ) -> SlotChange | None:
        # Tried again where the connection breaks. If the first attempt was carried out after all, the second finds that
        # what it presupposes is not so: the mover looks again then.
        self._check_open()
        try:
            change = await self._database.patiently(partial(self._carry_out, list(slots), decide, seen, logged))
        except psycopg.Error as e:
            raise StoreUnavailable(f"{self._database.where}: {words(e)} ({e.sqlstate}); nothing was moved") from e
        if change is not None and change.rows:
            self._tail.moved(change.rows[-1].position)
        return change

    async def _carry_out(
        self, slots: list[int], decide: Decide, seen: int | None, logged: bool, c: AsyncConnection[Any]
    ) -> SlotChange | None:
        async with c.transaction(), c.cursor(binary=True) as cursor:

            async def rows(text: str, *parameters: Any) -> list[tuple[Any, ...]]:
                await cursor.execute(self._sql(text), parameters)
                return await cursor.fetchall() if cursor.description else []

            await rows(_LOCK)
            ((now, moves, head, version),) = await rows(_LOG + ("FOR UPDATE" if logged else ""), SLOTS_STREAM)
            if now != self.identity.incarnation:
                raise replaced(self._database.where, self.identity)
            found = Found(
                moves=moves,
                states=_states(await rows(_STATES)) if moves else unmoved(self.identity.slots),
                arrived=_arrived(slots, await rows(_ARRIVALS, slots)),
                head=head,
                version=version,
                later=[] if seen is None else [(slot, id) for slot, id in await rows(_LATER, seen, slots)],
                fence=next(map(Fence._make, await rows(_FENCE, FENCES_STREAM)), None),
            )
            if (change := decide(found)) is None:
                return None
            if change.imports:
                async with cursor.copy(self._sql(_IMPORT)) as copy:
                    copy.set_types(("int8", *COLUMN_TYPES))
                    for event in change.imports:
                        await copy.write_row((head, *event))
            if change.arrived:
                await rows(_PUT_ARRIVALS, *_columns([(slot, *h) for slot, h in change.arrived.items()]))
            if change.states:
                states = [(slot, s.epoch, s.to, s.position, *s.history) for slot, s in change.states.items()]
                await rows(_PUT_STATES, *_columns(states))
                await rows("DELETE FROM {schema}.arrivals WHERE slot = ANY(%s)", change.opened)
            if change.rows:
                await cursor.executemany(self._sql(_INSERT), change.rows)
                await rows(_MOVED, head + len(change.rows), int(bool(change.states)))
                await rows("SELECT pg_notify(%s, %s)", self._channel, str(head + len(change.rows)))
            return change


async def put(c: AsyncConnection[Any], schema: str, rows: SlotRows) -> None:
    """Write what is said of slots where nothing was said yet."""
    states = [(slot, s.epoch, s.to, s.position, *s.history) for slot, s in rows.states.items()]
    for text, found in ((_PUT_ARRIVALS, [(slot, *h) for slot, h in rows.arrived.items()]), (_PUT_STATES, states)):
        if found:
            await c.execute(sql.SQL(text).format(schema=sql.Identifier(schema)), _columns(found))


def _states(rows: Sequence[tuple[Any, ...]]) -> dict[int, SlotState]:
    return {
        slot: SlotState(epoch, to, position, History(length, digest))
        for slot, epoch, to, position, length, digest in rows
    }


def _arrived(slots: Sequence[int], rows: Sequence[tuple[Any, ...]]) -> dict[int, History]:
    return dict.fromkeys(slots, History()) | {slot: History(length, digest) for slot, length, digest in rows}


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
