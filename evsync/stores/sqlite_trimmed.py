"""An SQLite store whose log may have been trimmed from the front.

A trim takes events out of the file, and never the last one of a stream: so versions go on, whatever is gone. What is
still there of the trimmed part are the events that aggregates are made of. A read that meets a gap gets the rest from
the archive, if there is one to read; who gets no gap pays for one comparison.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from evsync.errors import ConfigurationError, HistoryGone
from evsync.ports import Arrived, Past, Place
from evsync.records import OWN_STREAMS, Change, StoredEvent, change_of
from evsync.stores import sqlite_schema as schema
from evsync.stores import sqlite_slots as slots_of
from evsync.stores.sqlite import SqliteStore
from evsync.stores.sqlite_errors import translated

ROWS_PER_TRANSACTION = 2_000
"""How many events leave at once: saves wait meanwhile."""

_OLD_STREAMS = (
    "SELECT stream, max(version) FROM events WHERE stream > ?1 AND substr(stream, 1, ?4) <> ?5 "
    "GROUP BY stream HAVING min(position) <= ?3 AND count(*) > 1 ORDER BY stream LIMIT ?2"
)
_DROP = (
    "DELETE FROM events WHERE position IN (SELECT position FROM events WHERE stream = ?1 AND version <= ?2 AND "
    "position <= ?3 AND version < (SELECT max(version) FROM events WHERE stream = ?1) ORDER BY version LIMIT ?4)"
)


class TrimmableStore(SqliteStore):
    """What `open_store` gives for an SQLite file. Implements Trimmable."""

    past: Past | None = None

    # ---- reading over what is gone

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """See SqliteStore. Raises HistoryGone for what was trimmed, where there is no archive to read it from."""
        events = await super().read(after, limit)
        # Positions only grow, so as many as they span are all of them. The log's last event is always there.
        if not events or events[-1].position - after == len(events) or after >= (trimmed := await self.trimmed()):
            return events
        found = await self._past(f"positions {after + 1} to {trimmed}").read(after, limit, trimmed)
        if not found:
            raise self._gone(f"positions {after + 1} to {trimmed}", "the archive does not have them")
        return found

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """See SqliteStore. Raises HistoryGone as `read`."""
        events = await super().read_stream(stream, after_version=after_version, to_version=to_version)
        if events:
            if events[-1].version - after_version == len(events) or not await self.trimmed():
                return events
            found: list[StoredEvent] = []
            for event in events:  # a trim may come between two slices, and leave a gap there
                due = found[-1].version + 1 if found else after_version + 1
                if event.version > due:
                    found += await self._trimmed_of(stream, due - 1, event.version - 1)
                found.append(event)
            return found
        end = await self._end_of_gap(stream, after_version, to_version)
        return await self._trimmed_of(stream, after_version, end - 1) if end > after_version + 1 else []

    async def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See SqliteStore. Raises HistoryGone as `read`."""
        due = after_version + 1
        async for changes in super().read_changes(stream, after_version=after_version, to_version=to_version):
            first = changes[0][1]
            # A trim may also come between two slices.
            if first > due and (missed := await self._trimmed_of(stream, due - 1, first - 1)):
                yield list(map(change_of, missed))
            yield changes
            due = changes[-1][1] + 1
        if due <= after_version + 1:
            end = await self._end_of_gap(stream, after_version, to_version)
            if end > due and (missed := await self._trimmed_of(stream, after_version, end - 1)):
                yield list(map(change_of, missed))

    async def _end_of_gap(self, stream: str, after_version: int, to_version: int | None) -> int:
        """Where nothing was found up to a version: the one behind it, if the stream goes on there; else 0."""
        if to_version is None:
            return 0  # the last event is always there
        rows = await self._fetch("SELECT 1 FROM events WHERE stream = ? AND version > ? LIMIT 1", (stream, to_version))
        return to_version + 1 if rows else 0

    async def _trimmed_of(self, stream: str, after_version: int, to_version: int) -> list[StoredEvent]:
        if not await self.trimmed():
            return []  # another library gives its versions itself, with gaps
        what = f"versions {after_version + 1} to {to_version} of stream {stream!r}"
        return await self._past(what).read_stream(stream, after_version, to_version)

    def _past(self, what: str) -> Past:
        if self.past is None:
            raise self._gone(what, "there is no archive to read them from")
        return self.past

    def _gone(self, what: str, why: str) -> HistoryGone:
        return HistoryGone(
            f"{what} were trimmed from {self.path}, and {why}. Give the service its BackupPolicy, or who follows it "
            "archives= with the places of its archive.",
            log=self.identity.name,
        )

    # ---- trimming

    async def trimmed(self) -> int:
        """See Trimmable."""
        ((position,),) = await self._fetch("SELECT trimmed FROM log", ())
        return int(position)

    async def begin_trim(self, position: int) -> None:
        """See Trimmable."""

        def begin(c: sqlite3.Connection) -> int:
            if slots_of.moves_of(c):
                raise ConfigurationError(
                    f"{self.path} is the store of one of several shards, and these cannot be trimmed in this version: "
                    "a slot that moves takes its whole history along. Nothing was done."
                )
            return c.execute("UPDATE log SET trimmed = max(trimmed, ?)", (position,)).rowcount

        await self._transaction(begin)

    async def old_streams(self, position: int, after: str, limit: int) -> Sequence[tuple[str, int]]:
        """See Trimmable."""
        own = (len(OWN_STREAMS), OWN_STREAMS)
        return await self._in_thread(lambda c: c.execute(_OLD_STREAMS, (after, limit, position, *own)).fetchall())

    async def drop(self, versions: Mapping[str, int]) -> int:
        """See Trimmable."""

        def drop(c: sqlite3.Connection) -> int:
            ((trimmed,),) = c.execute("SELECT trimmed FROM log").fetchall()
            left = ROWS_PER_TRANSACTION
            for stream, version in versions.items():
                left -= c.execute(_DROP, (stream, version, trimmed, left)).rowcount
                if not left:
                    break
            return ROWS_PER_TRANSACTION - left

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
        try:
            return await self._writer.run(change)
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as e:
            raise translated(e, self.path) from e

    # ---- what a trimmed store does not do

    async def slot_events(self, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
        """See SlotStore. Raises ConfigurationError for a store that was trimmed."""
        if await self.trimmed():
            raise ConfigurationError(
                f"{self.path} was trimmed, and slots cannot be moved from a trimmed store in this version: their whole "
                "history would have to go along. Restore the service from its archive first; that makes it whole."
            )
        return await super().slot_events(slots, after, limit)
