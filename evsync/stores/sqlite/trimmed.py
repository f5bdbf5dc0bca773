"""An SQLite store whose log may have been trimmed from the front."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence

from evsync.records import OWN_STREAMS
from evsync.stores import trimmed
from evsync.stores.sqlite import schema
from evsync.stores.sqlite import slots as slots_of
from evsync.stores.sqlite.store import SqliteStore
from evsync.stores.trimmed import Trimmed

_OLD_STREAMS = (
    "SELECT stream, max(version) FROM events WHERE stream > ?1 AND substr(stream, 1, ?4) <> ?5 "
    "GROUP BY stream HAVING min(position) <= ?3 AND count(*) > 1 ORDER BY stream LIMIT ?2"
)
_DROP = (
    "DELETE FROM events WHERE position IN (SELECT position FROM events WHERE stream = ?1 AND version <= ?2 AND "
    "position <= ?3 AND version < (SELECT max(version) FROM events WHERE stream = ?1) ORDER BY version LIMIT ?4)"
)


class TrimmableSqliteStore(Trimmed, SqliteStore):
    """What `open_store` gives for an SQLite file."""

    async def _goes_on(self, stream: str, version: int) -> bool:
        found = await self._fetch("SELECT 1 FROM events WHERE stream = ? AND version > ? LIMIT 1", (stream, version))
        return bool(found)

    # ---- trimming

    async def trimmed(self) -> int:
        """See Trimmed."""
        ((position,),) = await self._fetch("SELECT trimmed FROM log", ())
        return int(position)

    async def begin_trim(self, position: int) -> None:
        """See Trimmed."""

        def begin(c: sqlite3.Connection) -> int:
            if slots_of.moves_of(c):
                raise self._one_of_several()
            return c.execute("UPDATE log SET trimmed = max(trimmed, ?)", (position,)).rowcount

        await self._transaction(begin)

    async def old_streams(self, position: int, after: str, limit: int) -> Sequence[tuple[str, int]]:
        """See Trimmed."""
        own = (len(OWN_STREAMS), OWN_STREAMS)
        return await self._in_thread(lambda c: c.execute(_OLD_STREAMS, (after, limit, position, *own)).fetchall())

    async def drop(self, versions: Mapping[str, int]) -> int:
        """See Trimmed."""

        def drop(c: sqlite3.Connection) -> int:
            ((position,),) = c.execute("SELECT trimmed FROM log").fetchall()
            left = trimmed.ROWS_PER_TRANSACTION
            for stream, version in versions.items():
                left -= c.execute(_DROP, (stream, version, position, left)).rowcount
                if not left:
                    break
            return trimmed.ROWS_PER_TRANSACTION - left

        dropped = 0
        while part := await self._transaction(drop):
            dropped += part
        return dropped

    async def _transaction(self, work: Callable[[sqlite3.Connection], int]) -> int:
        """Do this in the writer's thread, in line with appends; how many rows it has changed."""

        def change(c: sqlite3.Connection) -> int:
            self._check_file()
            schema.begin(c, self._patience_s)
            if changed := work(c):
                self._commit(c)
            return changed  # a transaction that wrote nothing is rolled back behind us

        self._check_open()
        return await self._writer.run(change)
