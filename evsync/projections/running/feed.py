"""Batches of one log, read ahead while the one before is applied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from evsync.errors import CodecError, ConfigurationError, RelayError, WrongStore
from evsync.ports import LogReader, LogSource, ReadsShares, Share, Stretch
from evsync.projections.pause import patiently
from evsync.projections.running.barrier import IsApplied, Reach, up_to_barrier
from evsync.projections.running.continuity import check_history
from evsync.tasks import end_task

FATAL = (RelayError, WrongStore, ConfigurationError, CodecError)
"""What only a person can mend. Everything else that a source raises is taken to pass, and is asked for again."""

WIDEST = 16
"""How many times as long a stretch may be for a worker that needs little of it."""

Report = Callable[[str | None], None]
"""Is told what stands in the way of reading, or None when nothing does."""


class Feed:
    """Reads one log for one follower. Used by one task at a time."""

    def __init__(self, reader: LogReader, limit: int, report: Report) -> None:
        self._reader, self._report = reader, report
        self.limit = limit
        """About how many events are read at a time."""
        self.share: Share | None = None
        """Whose events are needed; None: everybody's. A hint, as not every log can leave others' out."""
        self._width = 1.0
        """How long a stretch was for each of its events, where others were left out."""
        self._ahead: asyncio.Future[Stretch] | None = None
        self._ahead_of: tuple[int, Share | None] = 0, None

    @property
    def span(self) -> int:
        """About how long a stretch is read at a time: so that `limit` of its events are of the share."""
        return self.limit if self.share is None else int(self.limit * self._width)

    async def next(self, after: int, incarnation: str, timeout_s: float) -> Stretch:
        """What stands behind position `after`; empty when nothing came in time. Trouble that passes is waited out.

        `incarnation` is that of what was applied, "" for nothing. Raises OtherIncarnation, and what is FATAL.
        """

        async def read() -> Stretch:
            check_history(self._reader, after, incarnation)
            return await self._read(after, timeout_s)

        return await patiently(read, self._cannot_be_read, passing=(Exception,), but=FATAL)

    async def up_to_barrier(
        self, after: int, incarnation: str, applied: IsApplied, timeout_s: float, ahead_s: float
    ) -> tuple[Stretch, Reach]:
        """What `next` gives, as far as it may be applied; what comes behind that is being read already, for `ahead_s`.

        What stands behind a barrier is kept until that is met.
        """
        stretch = await self.next(after, incarnation, timeout_s)
        reach = up_to_barrier(stretch.events, applied)
        if reach.barrier is None and reach.events:
            self.read_ahead(reach.events[-1].position, ahead_s)
        elif reach.barrier is not None and not reach.events:
            self._report(str(reach.barrier))
            self.keep(after, stretch)
        return stretch._replace(events=reach.events), reach

    async def now(self, after: int, incarnation: str, applied: IsApplied, limit: int | None) -> tuple[Stretch, Reach]:
        """The same, of what is there behind `after`: without waiting, second attempts, and reading ahead."""
        check_history(self._reader, after, incarnation)
        await self.drop()
        stretch = await self._ask(self.share, after, limit or self.span, 0.0)
        reach = up_to_barrier(stretch.events, applied)
        return stretch._replace(events=reach.events), reach

    def read_ahead(self, after: int, timeout_s: float) -> None:
        """Begin to read what the next call of `next` will probably ask for."""
        self._ahead = asyncio.create_task(self._ask(self.share, after, self.span, timeout_s))
        self._ahead_of = after, self.share

    def keep(self, after: int, stretch: Stretch) -> None:
        """Give this once more, without reading it again, if `next` is called for the same place."""
        self._ahead = asyncio.get_running_loop().create_future()
        self._ahead.set_result(stretch)
        self._ahead_of = after, stretch.share

    async def drop(self) -> None:
        """Forget what was read ahead, or kept."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await end_task(ahead)

    async def close(self) -> None:
        """Stop reading and let go of the log."""
        await self.drop()
        await self._reader.close()

    def _cannot_be_read(self, error: Exception | None) -> None:
        self._report(f"log {self._reader.log!r} cannot be read: {type(error).__name__}: {error}" if error else None)

    async def _read(self, after: int, timeout_s: float) -> Stretch:
        position, share = self._ahead_of
        if self._ahead is not None and position == after and (share is None or share.serves(self.share)):
            ahead, self._ahead = self._ahead, None
            return await ahead
        await self.drop()
        return await self._ask(self.share, after, self.span, timeout_s)

    async def _ask(self, share: Share | None, after: int, span: int, timeout_s: float) -> Stretch:
        reader = self._reader
        if share is not None and isinstance(reader, ReadsShares):
            found = _shortened(await reader.read_share(after, span, share), after, self.limit)
            if found.events:
                self._width = min((found.events[-1].position - after) / len(found.events), WIDEST)
                return found
        return Stretch(await reader.read(after, min(span, self.limit), timeout_s))


def _shortened(found: Stretch, after: int, limit: int) -> Stretch:
    """A stretch behind a position that has far more events than it was to have, up to where a commit of these ends.

    So it is where a worker's events are dense again behind a part of the log that was others'.
    """
    if len(found.events) <= 2 * limit:
        return found
    n = next((n for n, e in enumerate(found.events, 1) if n >= limit and not e.remaining), len(found.events))
    events = found.events[:n]
    return found._replace(events=events, left_out=events[-1].position - after - n)


async def connect(source: LogSource, report: Report) -> Sequence[LogReader]:
    """One new reader per log of the source, as soon as one is known. Raises what is FATAL."""

    def tell(error: Exception | None) -> None:
        report(f"the log of {source.service!r} cannot be reached: {type(error).__name__}: {error}" if error else None)

    return await patiently(source.readers, tell, passing=(Exception,), but=FATAL)
