"""What a store needs whose log may have been trimmed from the front, whatever database it is in.

A trim takes events out of the store, and never the last one of a stream: so versions go on, whatever is gone. What is
still there of the trimmed part are the events that aggregates are made of. A read that meets a gap gets the rest from
the archive, if there is one to read; who meets none pays for one comparison.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from evsync.errors import ArchiveIncomplete, ConfigurationError, HistoryGone
from evsync.inspection import StoreFacts
from evsync.ports import Arrived, Past, Place
from evsync.records import Change, StoredEvent, change_of
from evsync.stores.database import DatabaseStore

ROWS_PER_TRANSACTION = 2_000
"""How many events leave at once."""


class Trimmed(DatabaseStore):
    """A store whose log can be trimmed from the front, and what makes whole what it has read.

    Laws: the last event of a stream never leaves. What is read of a log or a stream is whole, the trimmed part of it
    from `past`; HistoryGone is raised where there is none. Whatever changes something may be called again after it was
    broken off. To be mixed in before a store, whose own reads `super()` finds.
    """

    past: Past | None = None
    """Where to read what is gone."""

    async def trimmed(self) -> int:
        """The position up to which events may be gone; 0 for a log that was never trimmed."""
        return await self._number(self.reads.trimmed)

    async def begin_trim(self, position: int) -> None:
        """From now on, events up to this position may be gone. Raises ConfigurationError for one of several shards."""
        raise NotImplementedError

    async def old_streams(self, position: int, after: str, limit: int) -> Sequence[tuple[str, int]]:
        """Streams behind `after`, by id, that have events at or before a position which are not their last; each with
        its last version. None of evsync's own."""
        return await self._fetch(self.reads.old_streams, (after, position, limit))

    async def drop(self, versions: Mapping[str, int]) -> int:
        """Take out the events of these streams up to the version given, and the position trimmed to; how many."""
        dropped = 0
        while part := await self._drop_some(versions):
            dropped += part
        return dropped

    async def _drop_some(self, versions: Mapping[str, int]) -> int:
        """Do that with up to ROWS_PER_TRANSACTION of them, in one transaction."""
        raise NotImplementedError

    # ---- reading

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """See EventLog. Raises HistoryGone for what was trimmed, where there is no archive to read it from."""
        return await self._whole_log(await super().read(after, limit), after, limit)

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """See EventStore. Raises HistoryGone as `read`."""
        events = await super().read_stream(stream, after_version=after_version, to_version=to_version)
        return await self._whole_stream(events, stream, after_version, to_version)

    def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See EventStore. Raises HistoryGone as `read`."""
        slices = super().read_changes(stream, after_version=after_version, to_version=to_version)
        return self._whole_changes(slices, stream, after_version, to_version)

    async def slot_events(self, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
        """See SlotStore. Raises ConfigurationError for a store that was trimmed."""
        if await self.trimmed():
            raise ConfigurationError(
                f"the store of log {self.identity.name} was trimmed, and slots cannot be moved from a trimmed store in "
                "this version: their whole history would have to go along. Restore the service from its archive first; "
                "that makes it whole."
            )
        return await super().slot_events(slots, after, limit)

    async def facts(self) -> StoreFacts:
        """See Inspectable."""
        return replace(await super().facts(), trimmed=await self.trimmed())

    async def _whole_log(self, events: list[StoredEvent], after: int, limit: int) -> list[StoredEvent]:
        """What was read of the log, or instead what the archive has there, if there is a gap in it."""
        # Positions only grow, so as many as they span are all of them. The log's last event is always there.
        if not events or events[-1].position - after == len(events) or after >= (trimmed := await self.trimmed()):
            return events
        what = f"positions {after + 1} to {trimmed}"
        with self._needing(what):
            found = await self._past(what).read(after, limit, trimmed)
        if not found:
            raise self._gone(what, "the archive does not have them")
        return found

    async def _whole_stream(
        self, events: list[StoredEvent], stream: str, after_version: int, to_version: int | None
    ) -> list[StoredEvent]:
        """What was read of a stream, its gaps filled from the archive."""
        after_version = max(after_version, 0)  # a version 0, which other libraries give, never leaves
        if not events:
            end = await self._end_of_gap(stream, after_version, to_version)
            return await self._trimmed_of(stream, after_version, end - 1) if end > after_version + 1 else []
        if events[-1].version - after_version == len(events) or not await self.trimmed():
            return events
        found: list[StoredEvent] = []
        for event in events:  # a trim may come between two slices, and leave a gap there
            due = found[-1].version + 1 if found else after_version + 1
            if event.version > due:
                found += await self._trimmed_of(stream, due - 1, event.version - 1)
            found.append(event)
        return found

    async def _whole_changes(
        self, slices: AsyncIterator[Sequence[Change]], stream: str, after_version: int, to_version: int | None
    ) -> AsyncIterator[Sequence[Change]]:
        """The slices of a stream, gaps before, between and behind them filled from the archive."""
        after_version = max(after_version, 0)
        due = after_version + 1
        async for changes in slices:
            first = changes[0][1]
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
        if to_version is None or to_version <= after_version:
            return 0  # the last event is always there
        goes_on = await self._fetch(self.reads.goes_on, (stream, to_version))
        return to_version + 1 if goes_on else 0

    async def _trimmed_of(self, stream: str, after_version: int, to_version: int) -> list[StoredEvent]:
        if not (trimmed := await self.trimmed()):
            return []  # another library gives its versions itself, with gaps
        what = f"versions {after_version + 1} to {to_version} of stream {stream!r}"
        with self._needing(what):
            return await self._past(what).read_stream(stream, after_version, to_version, trimmed)

    def _past(self, what: str) -> Past:
        if self.past is None:
            raise self._gone(what, "there is no archive to read them from")
        return self.past

    @contextmanager
    def _needing(self, what: str) -> Iterator[None]:
        """Let an archive that lacks something be told of with what it was needed for."""
        try:
            yield
        except ArchiveIncomplete as e:
            raise ArchiveIncomplete(
                f"{what} were trimmed from the store of log {self.identity.name}, and its archive does not have them: "
                f"{e}. Bring back a copy of the archive, or name its place in the BackupPolicy (or archives=)."
            ) from e

    def _gone(self, what: str, why: str) -> HistoryGone:
        return HistoryGone(
            f"{what} were trimmed from the store of log {self.identity.name}, and {why}. Give the service its "
            "BackupPolicy, or who follows it archives= with the places of its archive.",
            log=self.identity.name,
        )

    def _one_of_several(self) -> ConfigurationError:
        return ConfigurationError(
            f"the store of log {self.identity.name} is that of one of several shards, and these cannot be trimmed in "
            "this version: a slot that moves takes its whole history along. Nothing was done."
        )
