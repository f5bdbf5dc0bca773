"""A PostgreSQL store whose log may have been trimmed from the front."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection

from evsync.errors import StoreUnavailable
from evsync.records import OWN_STREAMS, Change
from evsync.stores import trimmed
from evsync.stores.postgres.connections import words
from evsync.stores.postgres.store import PostgresStore
from evsync.stores.trimmed import Trimmed

# The column is made by the first trim: a store that never was needs none.
_TRIMMED = "SELECT coalesce((to_jsonb(log) ->> 'trimmed')::bigint, 0) FROM {schema}.log"
_ADD_COLUMN = "ALTER TABLE {schema}.log ADD COLUMN IF NOT EXISTS trimmed bigint NOT NULL DEFAULT 0"
_BEGIN = "UPDATE {schema}.log SET trimmed = greatest(trimmed, %s) WHERE moves = 0"
_GOES_ON = "SELECT 1 FROM {schema}.events WHERE stream = %s AND version > %s LIMIT 1"
_OLD_STREAMS = (
    "SELECT stream, max(version) FROM {schema}.events WHERE stream > %s AND "
    f"NOT starts_with(stream, '{OWN_STREAMS}') GROUP BY stream "
    "HAVING min(position) <= %s AND count(*) > 1 ORDER BY stream LIMIT %s"
)
_DROP = """
    DELETE FROM {schema}.events WHERE position = ANY (ARRAY(
        SELECT position FROM {schema}.events WHERE stream = %(stream)s AND version <= %(version)s
            AND position <= (SELECT trimmed FROM {schema}.log)
            AND version < (SELECT max(version) FROM {schema}.events WHERE stream = %(stream)s)
        ORDER BY version LIMIT %(limit)s
    ))
"""


class TrimmablePostgresStore(Trimmed, PostgresStore):
    """What `open_store` gives for a PostgreSQL database."""

    def read_open(
        self, stream: str, slot: int, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See ReadsOpenSlots. Raises HistoryGone as `read`."""
        slices = super().read_open(stream, slot, after_version=after_version, to_version=to_version)
        return self._whole_changes(slices, stream, after_version, to_version)

    async def _goes_on(self, stream: str, version: int) -> bool:
        return "\0" not in stream and bool(await self._fetch(self._sql(_GOES_ON), (stream, version)))

    # ---- trimming

    async def trimmed(self) -> int:
        """See Trimmed."""
        ((position,),) = await self._fetch(self._sql(_TRIMMED), ())
        return int(position)

    async def begin_trim(self, position: int) -> None:
        """See Trimmed. The role needs the right to change the store's tables."""

        async def begin(c: AsyncConnection[Any]) -> int:
            async with c.transaction():
                await c.execute(self._sql(_ADD_COLUMN))
                return (await c.execute(self._sql(_BEGIN), (position,))).rowcount

        if not await self._change(begin):
            raise self._one_of_several()

    async def old_streams(self, position: int, after: str, limit: int) -> Sequence[tuple[str, int]]:
        """See Trimmed."""
        rows = await self._fetch(self._sql(_OLD_STREAMS), (after, position, limit))
        return [(stream, version) for stream, version in rows]

    async def drop(self, versions: Mapping[str, int]) -> int:
        """See Trimmed."""

        async def drop(c: AsyncConnection[Any]) -> int:
            left = trimmed.ROWS_PER_TRANSACTION
            async with c.transaction():
                for stream, version in versions.items():
                    which = {"stream": stream, "version": version, "limit": left}
                    left -= (await c.execute(self._sql(_DROP), which)).rowcount
                    if not left:
                        break
            return trimmed.ROWS_PER_TRANSACTION - left

        dropped = 0
        while part := await self._change(drop):
            dropped += part
        return dropped

    async def _change(self, work: Callable[[AsyncConnection[Any]], Awaitable[int]]) -> int:
        self._check_open()
        try:
            return await self._database.patiently(work)  # doing it twice changes nothing
        except psycopg.Error as e:
            raise StoreUnavailable(f"{self._database.where}: {words(e)} ({e.sqlstate}); nothing was trimmed") from e
