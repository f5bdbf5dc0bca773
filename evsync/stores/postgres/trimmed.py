"""A PostgreSQL store whose log may have been trimmed from the front."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection

from evsync.records import Change
from evsync.stores import trimmed
from evsync.stores.postgres.store import PostgresStore
from evsync.stores.trimmed import Trimmed

_BEGIN = "UPDATE {schema}.log SET trimmed = greatest(trimmed, %s) WHERE moves = 0"
_DROP = """
    DELETE FROM {schema}.events WHERE position = ANY (ARRAY(
        SELECT position FROM {schema}.events WHERE stream = %(stream)s AND version <= %(version)s
            AND position <= (SELECT trimmed FROM {schema}.log)
            AND version < (SELECT max(version) FROM {schema}.events WHERE stream = %(stream)s)
        ORDER BY version LIMIT %(limit)s
    ))
"""
_UNDONE = "nothing was trimmed"


class TrimmablePostgresStore(Trimmed, PostgresStore):
    """What `open_store` gives for a PostgreSQL database."""

    def read_open(
        self, stream: str, slot: int, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See ReadsOpenSlots. Raises HistoryGone as `read`."""
        slices = super().read_open(stream, slot, after_version=after_version, to_version=to_version)
        return self._whole_changes(slices, stream, after_version, to_version)

    async def begin_trim(self, position: int) -> None:
        """See Trimmed."""

        async def begin(c: AsyncConnection[Any]) -> int:
            return (await c.execute(self._sql(_BEGIN), (position,))).rowcount

        self._check_open()
        if not await self._database.patiently(begin, undone=_UNDONE):  # doing it twice changes nothing
            raise self._one_of_several()

    async def _drop_some(self, versions: Mapping[str, int]) -> int:
        async def drop(c: AsyncConnection[Any]) -> int:
            left = trimmed.ROWS_PER_TRANSACTION
            async with c.transaction():
                for stream, version in versions.items():
                    which = {"stream": stream, "version": version, "limit": left}
                    left -= (await c.execute(self._sql(_DROP), which)).rowcount
                    if not left:
                        break
            return trimmed.ROWS_PER_TRANSACTION - left

        self._check_open()
        return await self._database.patiently(drop, undone=_UNDONE)
