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

from evsync.control import FENCES_STREAM, SLOTS_STREAM
from evsync.errors import SlotMoved
from evsync.ports import Arrived, Place
from evsync.records import Change, History, LogIdentity, SlotRows, SlotState
from evsync.stores.database import DatabaseStore
from evsync.stores.postgres import statements
from evsync.stores.postgres.connections import Connections
from evsync.stores.postgres.errors import is_unwritable, replaced
from evsync.stores.slot_rows import arrival_rows, arrived_of, history_of, state_rows
from evsync.stores.slot_steps import Decide, Fence, Found, SlotChange
from evsync.tasks import end_task

CHANGES_PER_READ = 2_048
"""Events of one round trip when an aggregate is read."""


class MovableSlots(DatabaseStore):
    """What PostgresStore is too. Implements SlotStore, whose docstrings say what its methods do."""

    reads, kind = statements.READS, "PostgreSQL"

    def __init__(self, database: Connections, identity: LogIdentity, schema: str, moves: int) -> None:
        super().__init__(identity, database.where, moves)
        self.schema = schema
        self._database = database
        self._channel = f"evsync_{schema}"[:63]

    def _sql(self, text: str) -> sql.Composed:
        return statements.composed(text, self.schema)

    async def _fetch(self, text: str, parameters: Any = ()) -> list[Any]:
        async def fetch(c: AsyncConnection[Any]) -> list[tuple[Any, ...]]:
            async with c.cursor(binary=True) as cursor:
                try:
                    await cursor.execute(self._sql(text), parameters, prepare=True)
                except psycopg.DataError as e:
                    if is_unwritable(e):
                        return []  # under what no column can hold, such as an id with a NUL, nothing is stored
                    raise
                return await cursor.fetchall()

        self._check_open()
        return await self._database.patiently(fetch)

    async def arrived(self, slots: Sequence[int]) -> Mapping[int, History]:
        """What has arrived of the histories of slots that are not open here."""
        return arrived_of(slots, await self._fetch(statements.ARRIVALS, (list(slots),)))

    async def slot_events(self, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
        """The next events of these slots, own and imported, in the order in which they came."""
        came, number = after
        parameters = {"came": came, "number": number, "slots": list(slots), "limit": limit}
        return history_of(await self._fetch(statements.HISTORY, parameters))

    async def read_open(
        self, stream: str, slot: int, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """The changes of a stream whose slot is open here: see ReadsOpenSlots. A slice is a round trip."""
        while True:
            moves, states = self._known_slots
            if moves and not states:
                await self.slot_states()
                continue
            found = await self._of_stream(statements.READ_OPEN, stream, after_version, to_version)
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
            following = asyncio.create_task(
                self._of_stream(statements.READ_CHANGES, stream, changes[-1][1], to_version)
            )
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
        until = statements.MANY if to_version is None else min(to_version, statements.MANY)
        parameters = {"stream": stream, "after": after_version, "to": until, "limit": limit}
        return await self._fetch(queries[self._moved], parameters)

    async def _step(
        self, slots: Sequence[int], decide: Decide, *, seen: int | None = None, logged: bool = True
    ) -> SlotChange | None:
        # Tried again where the connection breaks. If the first attempt was carried out after all, the second finds that
        # what it presupposes is not so: the mover looks again then.
        self._check_open()
        carry_out = partial(self._carry_out, list(slots), decide, seen, logged)
        change = await self._database.patiently(carry_out, undone="nothing was moved")
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

            await rows(statements.LOCK)
            ((now, moves, head, version),) = await rows(statements.LOG + ("FOR UPDATE" if logged else ""), SLOTS_STREAM)
            if now != self.identity.incarnation:
                raise replaced(self._where, self.identity)
            found = Found(
                moves=moves,
                states=self._known(moves) or self._learned(moves, await rows(self.reads.states)),
                arrived=arrived_of(slots, await rows(statements.ARRIVALS, slots)),
                head=head,
                version=version,
                later=[] if seen is None else [(slot, id) for slot, id in await rows(statements.LATER, seen, slots)],
                fence=next(map(Fence._make, await rows(statements.FENCE, FENCES_STREAM)), None),
            )
            if (change := decide(found)) is None:
                return None
            if change.imports:
                async with cursor.copy(self._sql(statements.IMPORT)) as copy:
                    copy.set_types(("int8", *statements.COLUMN_TYPES))
                    for event in change.imports:
                        await copy.write_row((head, *event))
            await put(c, self.schema, SlotRows(change.states, change.arrived))
            if change.opened:
                await rows("DELETE FROM {schema}.arrivals WHERE slot = ANY(%s)", change.opened)
            if change.rows:
                await cursor.executemany(self._sql(statements.INSERT), change.rows)
                await rows(statements.MOVED, head + len(change.rows), int(bool(change.states)))
                await rows("SELECT pg_notify(%s, %s)", self._channel, str(head + len(change.rows)))
            return change


async def put(c: AsyncConnection[Any], schema: str, rows: SlotRows) -> None:
    """Write what is said of slots in place of what was."""
    for text, found in (
        (statements.PUT_ARRIVALS, arrival_rows(rows.arrived)),
        (statements.PUT_STATES, state_rows(rows.states)),
    ):
        if found:
            columns = [list(column) for column in zip(*found, strict=True)]
            await c.execute(statements.composed(text, schema), columns)
