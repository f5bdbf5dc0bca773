"""Batches of one log, read ahead while the one before is applied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from evsync.errors import CodecError, ConfigurationError, RelayError, WrongStore
from evsync.ports import LogReader, LogSource
from evsync.projections.batch import restored_before
from evsync.projections.pause import pause_s
from evsync.records import StoredEvent, incarnation_at
from evsync.tasks import end_task

FATAL = (RelayError, WrongStore, ConfigurationError, CodecError)
"""What only a person can mend. Everything else that a source raises is taken to pass, and is asked for again."""

Report = Callable[[str | None], None]
"""Is told what stands in the way of reading, or None when nothing does."""


class Feed:
    """Reads one log for one follower. Used by one task at a time."""

    def __init__(self, reader: LogReader, limit: int, report: Report) -> None:
        self._reader, self._report = reader, report
        self.limit = limit
        """About how many events are read at a time."""
        self._ahead: asyncio.Task[list[StoredEvent]] | None = None
        self._ahead_after = 0
        self._kept: tuple[int, list[StoredEvent]] | None = None

    async def next(self, after: int, incarnation: str, timeout_s: float) -> list[StoredEvent]:
        """The events behind position `after`; [] when none came in time. Trouble that passes is waited out.

        `incarnation` is that of what was applied, "" for nothing. Raises OtherIncarnation, and what is FATAL.
        """
        failures = 0
        while True:
            self._check(after, incarnation)
            try:
                events = await self._read(after, timeout_s)
            except FATAL:
                raise
            except Exception as e:
                failures += 1
                self._report(f"log {self._reader.log!r} cannot be read: {type(e).__name__}: {e}")
                await asyncio.sleep(pause_s(failures))
            else:
                if failures:
                    self._report(None)
                return events

    async def now(self, after: int, incarnation: str, limit: int | None) -> list[StoredEvent]:
        """What is there behind `after`, without waiting and without second attempts."""
        self._check(after, incarnation)
        await self.drop()
        return await self._reader.read(after, limit or self.limit, 0.0)

    def read_ahead(self, after: int, timeout_s: float) -> None:
        """Begin to read what the next call of `next` will probably ask for."""
        self._ahead = asyncio.create_task(self._reader.read(after, self.limit, timeout_s))
        self._ahead_after = after

    def keep(self, after: int, events: list[StoredEvent]) -> None:
        """Give these once more, without reading them again, if `next` is called for the same place."""
        self._kept = after, events

    async def drop(self) -> None:
        """Forget what was read ahead, or kept."""
        ahead, self._ahead, self._kept = self._ahead, None, None
        if ahead is not None:
            await end_task(ahead)

    async def close(self) -> None:
        """Stop reading and let go of the log."""
        await self.drop()
        await self._reader.close()

    async def _read(self, after: int, timeout_s: float) -> list[StoredEvent]:
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] == after:
            return kept[1]
        if self._ahead is not None and self._ahead_after == after:
            ahead, self._ahead = self._ahead, None
            return await ahead
        await self.drop()
        return await self._reader.read(after, self.limit, timeout_s)

    def _check(self, after: int, incarnation: str) -> None:
        """Raise unless what was applied is part of the log as it is now: of its incarnation, or of an ancestor's part
        that it has kept. The batch itself would not tell where the log has grown beyond that position again."""
        reader = self._reader
        found = reader.incarnation
        if incarnation and found is not None and found != incarnation:
            if incarnation_at(found, reader.ancestry, after) == incarnation:
                return
            raise restored_before(reader.log, after, incarnation, found, reader.ancestry)


async def connect(source: LogSource, report: Report) -> Sequence[LogReader]:
    """One new reader per log of the source, as soon as one is known. Raises what is FATAL."""
    failures = 0
    while True:
        try:
            readers = await source.readers()
        except FATAL:
            raise
        except Exception as e:
            failures += 1
            report(f"the log of {source.service!r} cannot be reached: {type(e).__name__}: {e}")
            await asyncio.sleep(pause_s(failures))
        else:
            if failures:
                report(None)
            return readers
