"""Filling a PostgreSQL store from a backup: in another schema, until it is complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.ports import Arrived
from evsync.records import Checkpoint, LogIdentity, SlotRows, StoredEvent, check_name
from evsync.stores.checkpoint_rows import to_row
from evsync.stores.plan import check_follows
from evsync.stores.postgres import schema as tables
from evsync.stores.postgres import statements
from evsync.stores.postgres.connections import Connections, settings_of
from evsync.stores.postgres.errors import translated, words
from evsync.stores.postgres.slots import put

_SUFFIX = "_restoring"
_UNDONE = "the store was not restored"
_CLAIM = 0x7265_7374  # with the name of the schema, an advisory lock of its own


class PostgresRestore:
    """Fills the schema of a PostgresStore. Implements StoreRestore. Made by `begin`.

    The tables are filled in a schema of another name, which is given its own at the end, in one transaction.
    """

    @classmethod
    async def begin(
        cls, url: str, *, service: str, shard: str, slots: int, patience_s: float = 10.0
    ) -> PostgresRestore:
        """Begin to fill the schema that the URL names, which must not hold anything yet.

        The role needs the right to make schemas in the database. Raises ConfigurationError, StoreUnavailable.
        """
        check_name("service", service)
        check_name("shard", shard)
        settings, schema = settings_of(url, service, shard)
        part = schema.encode()[: 63 - len(_SUFFIX)].decode(errors="ignore") + _SUFFIX
        database = Connections(settings, schema, patience_s)
        try:
            connection = await database.connect()
            restore = cls(database, connection, schema, part)
            try:
                await restore._begin(LogIdentity(service, shard, "restoring", slots))
            except BaseException:
                await connection.close()
                raise
        except psycopg.Error as e:
            await database.close()
            raise StoreUnavailable(f"the store in {database.where} cannot be restored: {words(e)}") from e
        except BaseException:
            await database.close()
            raise
        return restore

    def __init__(self, database: Connections, connection: AsyncConnection[Any], schema: str, part: str) -> None:
        """For `begin`, which everybody else uses."""
        self._database, self._connection = database, connection
        self._schema, self._part = schema, part
        self._head = self._numbers = 0
        self._completed = False

    async def _begin(self, identity: LogIdentity) -> None:
        c = self._connection
        async with c.transaction():
            await c.execute("SELECT pg_advisory_xact_lock(%s)", (tables.MAKING,))
            if not await tables.missing(c, "to_regclass", f"{sql.Identifier(self._schema).as_string()}.log"):
                raise ConfigurationError(
                    f"there is a store in {self._database.where} already, and a restore makes a new one: nothing was "
                    "touched. Restore to another ?schema=, then let the service use that; or rename the old schema."
                )
            # Held until the connection ends, however it does: nobody else fills, or takes away, what this one fills.
            claim = await c.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, %s))", (self._part, _CLAIM))
            if await claim.fetchone() != (True,):
                raise ConfigurationError(
                    f"another restore is filling the schema {self._part} in {self._database.where}, and nothing of it "
                    "was touched: wait for it, or end it, then begin again"
                )
            await self._drop()
            await c.execute(self._sql("CREATE SCHEMA {schema}"))
            await tables.make_tables(c, self._part, identity)

    async def load(self, events: Sequence[StoredEvent]) -> None:
        """Store events behind those that were loaded before."""
        check_follows(self._head, events)
        await self._copy(f"events ({statements.COLUMNS})", statements.COLUMN_TYPES, events)
        self._head += len(events)

    async def import_events(self, arrived: Sequence[Arrived]) -> None:
        """Store imports, each in its place."""
        types = ("int8", "int8", *statements.COLUMN_TYPES)
        rows = [(*place, *event) for place, event in arrived]
        await self._copy(f'imports ("at", number, {statements.COLUMNS})', types, rows)
        self._numbers = max([self._numbers, *(number for (_, number), _ in arrived)])

    async def _copy(self, into: str, types: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        copy = self._sql(f"COPY {{schema}}.{into} FROM STDIN (FORMAT binary)")
        try:
            async with self._connection.cursor() as cursor, cursor.copy(copy) as written:
                written.set_types(types)
                for row in rows:
                    await written.write_row(row)
        except psycopg.Error as e:
            raise translated(self._database.where, e, _UNDONE) from e

    async def complete(
        self, identity: LogIdentity, checkpoints: Mapping[str, Sequence[Checkpoint]], slots: SlotRows | None = None
    ) -> None:
        """Store the checkpoints and give the schema its name, in one transaction."""
        c, schema = self._connection, sql.Identifier(self._schema)
        try:
            async with c.transaction():
                rows = [(follower, *to_row(k)) for follower, kept in checkpoints.items() for k in kept]
                async with c.cursor() as cursor:
                    insert = "INSERT INTO {schema}.checkpoints VALUES (%s, %s, %s, %s, %s, %s, %s)"
                    await cursor.executemany(self._sql(insert), rows)
                await c.execute(
                    self._sql("UPDATE {schema}.log SET incarnation = %s, slots = %s, head = %s, moves = %s"),
                    (identity.incarnation, identity.slots, self._head, 0 if slots is None else 1),
                )
                if slots is not None:
                    await put(c, self._part, slots)
                    numbered = f"ALTER TABLE {{schema}}.imports ALTER COLUMN number RESTART WITH {self._numbers + 1}"
                    await c.execute(self._sql(numbered))
                if not await tables.missing(c, "to_regnamespace", schema.as_string()):
                    await c.execute(sql.SQL("DROP SCHEMA {}").format(schema))  # refused unless it is empty
                await c.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(self._part), schema))
                await tables.define(c, self._schema)
            self._completed = True
            await c.execute(sql.SQL("ANALYZE {}.events").format(schema))
        except psycopg.Error as e:
            raise translated(self._database.where, e, _UNDONE) from e

    async def close(self) -> None:
        """Release everything, and take away what is not complete, as far as the database answers."""
        try:
            if not self._completed and not self._connection.closed:
                await self._drop()
        except psycopg.Error:
            pass  # the next restore does it
        finally:
            await self._connection.close()
            await self._database.close()

    async def _drop(self) -> None:
        await self._connection.execute(self._sql("DROP SCHEMA IF EXISTS {schema} CASCADE"))

    def _sql(self, text: str) -> sql.Composed:
        return statements.composed(text, self._part)
