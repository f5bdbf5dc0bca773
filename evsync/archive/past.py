"""What was trimmed from a store, read from its archive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from evsync.archive.copies import Archive
from evsync.archive.history import Portions, SegmentEvents, read_copies
from evsync.archive.targets import opened_targets
from evsync.errors import ArchiveIncomplete, redacted
from evsync.records import LogIdentity, StoredEvent

_READINGS = 4
"""How many readers may go on where they were, each holding a segment."""


class ArchivedPast:
    """Implements Past. Places are opened when something is asked for first, and for the length of that only."""

    def __init__(self, identity: LogIdentity, urls: Sequence[str]) -> None:
        self._identity, self._urls = identity, urls
        self._where = redacted(", ".join(urls))
        self._readings: dict[int, _Reading] = {}

    async def read(self, after: int, limit: int, to: int) -> list[StoredEvent]:
        """See Past."""
        reading = self._readings.pop(after, None) or _Reading(self._segments(after))
        events = await reading.next(limit)
        if events and events[-1].position < to:
            self._readings[events[-1].position] = reading
        while len(self._readings) > _READINGS:
            del self._readings[next(iter(self._readings))]
        return events

    async def read_stream(self, stream: str, after_version: int, to_version: int, to: int) -> list[StoredEvent]:
        """See Past. Reads the archive from its beginning: what a stream needs may be anywhere in it."""
        found: list[StoredEvent] = []
        end = 0
        async for _, events in self._segments(0):
            found += [e for e in events if e.stream == stream and after_version < e.version <= to_version]
            end = events[-1].position
            if (found and found[-1].version == to_version) or end >= to:
                return found
        raise ArchiveIncomplete(f"the archive of log {self._identity.name} ends at position {end} in {self._where}")

    async def _segments(self, after: int) -> AsyncIterator[SegmentEvents]:
        async with opened_targets(self._urls) as targets:
            archive = await Archive.find(targets, self._identity.name, self._identity.incarnation)
            async for found in read_copies(archive.copies, after):
                yield found


class _Reading:
    """A reader's place in the archive."""

    def __init__(self, segments: AsyncIterator[SegmentEvents]) -> None:
        self._segments = segments
        self._portions = Portions()

    async def next(self, limit: int) -> list[StoredEvent]:
        """The next events, whole commits; [] where the archive ends."""
        if events := self._portions.next(limit):
            return events
        async for _, events in self._segments:
            self._portions = Portions(events)
            return self._portions.next(limit)
        return []
