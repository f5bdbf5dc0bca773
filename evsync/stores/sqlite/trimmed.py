"""An SQLite store whose log may have been trimmed from the front."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from evsync.stores import trimmed
from evsync.stores.sqlite.statements import READS
from evsync.stores.sqlite.store import SqliteStore
from evsync.stores.trimmed import Trimmed

_DROP = (
    "DELETE FROM events WHERE position IN (SELECT position FROM events WHERE stream = ?1 AND version <= ?2 AND "
    "position <= ?3 AND version < (SELECT max(version) FROM events WHERE stream = ?1) ORDER BY version LIMIT ?4)"
)


class TrimmableSqliteStore(Trimmed, SqliteStore):
    """What `open_store` gives for an SQLite file."""

    async def begin_trim(self, position: int) -> None:
        """See Trimmed."""

        def begin(c: sqlite3.Connection) -> int:
            return c.execute("UPDATE log SET trimmed = max(trimmed, ?) WHERE moves = 0", (position,)).rowcount

        if not await self._transaction(begin):
            raise self._one_of_several()

    async def _drop_some(self, versions: Mapping[str, int]) -> int:
        def drop(c: sqlite3.Connection) -> int:
            (position,) = c.execute(READS.trimmed).fetchone()
            left = trimmed.ROWS_PER_TRANSACTION
            for stream, version in versions.items():
                left -= c.execute(_DROP, (stream, version, position, left)).rowcount
                if not left:
                    break
            return trimmed.ROWS_PER_TRANSACTION - left

        return await self._transaction(drop)
