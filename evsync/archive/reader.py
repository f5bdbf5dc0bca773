"""A log that is read from its archive first, and goes on live where that ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

from evsync.archive.copies import Archive
from evsync.archive.history import Portions, SegmentEvents, read_copies
from evsync.archive.targets import open_target
from evsync.errors import ArchiveError, HistoryGone
from evsync.ports import BackupTarget, LogReader, LogSource
from evsync.records import Ancestor, StoredEvent
from evsync.tasks import end_task

log = logging.getLogger("evsync.archive")

WORTH_EVENTS = 5_000
"""Who is less far behind than this reads live: that is sooner there."""


class ArchivedReader:
    """Implements LogReader over an archive and the reader of the live log.

    The archive is read by whoever is far behind, and by whoever needs what the live log does not have any more. What
    goes wrong with it is logged, and the live log is read instead.
    """

    def __init__(self, live: LogReader, targets: Sequence[BackupTarget], *, worth_events: int = WORTH_EVENTS) -> None:
        self._live, self._targets, self._worth = live, targets, worth_events
        self.log = live.log
        self._segments: AsyncIterator[SegmentEvents] | None = None
        self._ahead: asyncio.Task[list[StoredEvent] | None] | None = None
        self._portions = Portions()
        self._reported: set[str] = set()
        self._after: int | None = None  # where the next read should begin; None before the first

    @property
    def incarnation(self) -> str | None:
        """Of the live log."""
        return self._live.incarnation

    @property
    def ancestry(self) -> Sequence[Ancestor]:
        """Of the live log."""
        return self._live.ancestry

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        """See LogReader."""
        if after != self._after:
            await self._begin(after, self._worth)
        if not (events := await self._archived(limit)):
            try:
                events = await self._live.read(after, limit, timeout_s)
            except HistoryGone:
                await self._begin(after, 1)
                if not (events := await self._archived(limit)):
                    raise
        self._after = events[-1].position if events else after
        return events

    async def head(self) -> int | None:
        """The last position that the live log knows of."""
        return await self._live.head()

    async def close(self) -> None:
        """Let go of everything."""
        await self._drop()
        await self._live.close()

    async def _begin(self, after: int, worth_events: int) -> None:
        """Go to a place in the archive, if that holds so many events from there on."""
        await self._drop()
        incarnation = self._live.incarnation
        if incarnation is None or not self._targets:
            return
        try:
            archive = await Archive.find(self._targets, self.log, incarnation)
            if await archive.end() - after < worth_events:
                return
        except ArchiveError as e:
            log.warning("the archive of log %s is not read: %s", self.log, e)
            return
        log.info("log %s is read from its archive, after position %d", self.log, after)
        self._segments = read_copies(archive.copies, after, report=self._report)
        self._ahead = asyncio.create_task(self._next())

    async def _archived(self, limit: int) -> list[StoredEvent]:
        """The next events of the archive, whole commits; [] where it ends."""
        if (events := self._portions.next(limit)) or self._ahead is None:
            return events
        found = await asyncio.shield(self._ahead)  # who is cancelled here may come again
        self._ahead = None
        if found is None:
            await self._drop()
            return []
        self._portions = Portions(found)
        self._ahead = asyncio.create_task(self._next())
        return self._portions.next(limit)

    async def _next(self) -> list[StoredEvent] | None:
        """The events of the next segment; None where the archive ends, or cannot be read."""
        assert self._segments is not None
        try:
            _, events = await anext(self._segments)
        except StopAsyncIteration:
            return None
        except ArchiveError as e:
            log.warning("the archive of log %s cannot be read any farther: %s", self.log, e)
            return None
        return events

    async def _drop(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await end_task(ahead)
        self._segments, self._portions = None, Portions()

    def _report(self, error: ArchiveError) -> None:
        if str(error) not in self._reported:
            self._reported.add(str(error))
            log.warning("a copy of the archive of log %s was worked around: %s", self.log, error)


class ArchivedSource:
    """The logs of a service, read from their archives first. Implements LogSource."""

    def __init__(self, source: LogSource, urls: Sequence[str]) -> None:
        """Raises ConfigurationError for a URL that is no place for backups."""
        self.service = source.service
        self._source = source
        self._targets = [open_target(url) for url in urls]

    @property
    def waiting_for(self) -> str:
        """Why the source has no readers yet; "" if that is not known."""
        return getattr(self._source, "waiting_for", "")

    async def readers(self) -> Sequence[LogReader]:
        """A reader for each that the source has."""
        return [ArchivedReader(reader, self._targets) for reader in await self._source.readers()]

    async def close(self) -> None:
        """Let go of the archive's places."""
        async with AsyncExitStack() as stack:
            for target in self._targets:
                stack.push_async_callback(target.close)
