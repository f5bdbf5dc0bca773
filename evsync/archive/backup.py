"""Making backups: the end of a log is brought to every target, and old segments are merged into longer ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from evsync.archive.columns import EventColumns
from evsync.archive.compression import check_installed
from evsync.archive.copies import Copy
from evsync.archive.followers import stored_checkpoints
from evsync.archive.merging import merge
from evsync.archive.pace import Pace
from evsync.archive.policy import Keep
from evsync.archive.segments import FollowerCheckpoint, Header, Segment, encode_segment
from evsync.errors import ArchiveDamaged, ArchiveError, ArchiveIncomplete, HistoryGone
from evsync.ports import BackupTarget, Progress, Store, unheard

SEGMENT_EVENTS = 20_000
SEGMENT_BYTES = 8 << 20
"""A segment ends with the commit that reaches one of these, at the latest."""
READ_EVENTS = 1_000
"""What is read and taken in at a time: a few milliseconds, for which nothing else of the process goes on."""
GENTLE = 0.1
"""The share of the time that the backups of a service take while it has other things to do."""
_ATTEMPTS = 5


@dataclass(slots=True)
class TargetResult:
    """What became of one copy."""

    target: str
    end: int = 0
    """The last position that it holds."""
    written: int = 0
    """Events that were written to it now."""
    merged: int = 0
    """Segments that were merged into others."""
    error: str | None = None
    """Why it does not hold everything, or could not be tidied up."""


@dataclass(slots=True)
class BackupReport:
    """What one backup did."""

    log: str
    incarnation: str
    head: int
    """Of the log when the backup began."""
    copies: int
    """How many are needed."""
    backed_up: int
    """The last position that so many targets hold."""
    targets: list[TargetResult] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether enough targets hold everything that was in the log when the backup began."""
        return self.backed_up >= self.head


class Backups:
    """Archives one log, again and again: `run()` brings what is new to every target.

    Any number of processes may do it at once: of two that write the same segment one is first, and the other goes on
    behind it. Killed at any moment, it leaves whole segments only.
    """

    def __init__(
        self,
        store: Store,
        targets: Sequence[BackupTarget],
        *,
        copies: int,
        keep: Keep | None = None,
        followers: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        segment_events: int = SEGMENT_EVENTS,
        share: float = 1.0,
    ) -> None:
        """`followers` are the names of the service's reactions, whose checkpoints are part of the store. `share` is how
        much of the time a backup may work while the process has other work: see Pace.

        Raises ConfigurationError where zstd is not installed.
        """
        check_installed()
        self._store, self._copies, self._keep = store, copies, keep or Keep()
        self._followers, self._clock, self._segment_events = followers, clock, segment_events
        self._pace = Pace(share)
        identity = store.identity
        self._of = [Copy(target, identity.name, identity.incarnation) for target in targets]
        self._encoded: dict[tuple[int, bytes], asyncio.Task[_Encoded]] = {}

    async def run(self, tell: Progress = unheard) -> BackupReport:
        """Bring every target up to the log's present head, then merge what has grown old.

        A target that fails is in the report, and keeps no other from being written. Raises StoreError.
        """
        began = time.monotonic()
        # Before the head: so they are not of commits beyond what is archived now.
        checkpoints = await stored_checkpoints(self._store, self._followers)
        head = await self._store.head()
        identity = self._store.identity
        results = [TargetResult(copy.target.url) for copy in self._of]
        try:
            bringing = zip(self._of, results, strict=True)
            run = _Run(head, checkpoints, tell)
            await asyncio.gather(*(self._bring(copy, result, run) for copy, result in bringing))
        finally:
            for task in self._encoded.values():
                task.cancel()
            self._encoded.clear()
        ends = sorted((r.end for r in results), reverse=True)
        backed_up = ends[self._copies - 1] if len(ends) >= self._copies else 0
        seconds = time.monotonic() - began
        return BackupReport(identity.name, identity.incarnation, head, self._copies, backed_up, results, seconds)

    async def _bring(self, copy: Copy, result: TargetResult, run: _Run) -> None:
        try:
            await self._extend(copy, result, run)
            await self._mend(copy, result)
            result.merged = await merge(copy, self._keep, self._now_us(), self._pace)
        except (ArchiveError, HistoryGone) as e:
            result.error = str(e)

    # ---- what is new

    async def _extend(self, copy: Copy, result: TargetResult, run: _Run) -> None:
        tail, damaged = await self._tail_of(copy)
        await self._check_history(copy, tail, run.head)
        end, link = _end_of(tail)
        result.end = end
        lost_races = 0
        while end < run.head:
            encoded = await self._encode(end + 1, link, run)
            if await copy.target.put(copy.name(end + 1), encoded.content, replace=end + 1 in damaged):
                damaged.discard(end + 1)
                result.written += encoded.last - end
                end, link = encoded.last, encoded.sha256
            else:
                before = end
                tail, damaged = await self._tail_of(copy)
                end, link = _end_of(tail)
                lost_races = 0 if end > before else lost_races + 1
                if lost_races > _ATTEMPTS:
                    raise ArchiveIncomplete(
                        f"{copy.name(end + 1)} in {copy.target.url} is there, and it can neither be read nor written"
                    )
            result.end = end
            run.tell(min(end, run.head), run.head)
        for first in damaged:
            if first <= end:  # what it held is in a new segment
                await copy.target.delete(copy.name(first))

    async def _tail_of(self, copy: Copy) -> tuple[Segment | None, set[int]]:
        """The last whole segment of a copy, and where damaged ones begin behind it: these are written anew.

        What is damaged before the end is for `_mend`, if it shows in the names and headers, or else for `verify`.
        """
        copy.forget()
        damaged: set[int] = set()
        for first in reversed(await copy.firsts()):
            try:
                return await copy.segment(first), damaged
            except ArchiveDamaged:
                damaged.add(first)
        return None, damaged

    async def _check_history(self, copy: Copy, tail: Segment | None, head: int) -> None:
        """Raise ArchiveIncomplete if the archive does not end within the log: the store was put back."""
        if tail is None:
            return
        what = None
        if tail.header.last > head:
            what = f"holds positions up to {tail.header.last}, and the log ends at {head}"
        else:
            archived = (await self._pace.step(copy.events(tail)))[-1]
            if (await self._store.read(archived.position - 1, 1))[:1] != [archived]:
                what = f"holds another event at position {archived.position} than the log"
        if what is not None:
            raise ArchiveIncomplete(
                f"the archive in {copy.target.url} {what}, in the same incarnation ({self._store.identity.incarnation})"
                ": the store was put back to an older copy, not restored. Nothing was written there. Restore the store "
                "from the archive with `evsync restore`, which gives it an incarnation of its own."
            )

    async def _encode(self, first: int, previous: bytes, run: _Run) -> _Encoded:
        """The segment that begins at a position: made once for all targets that need the same one."""
        task = self._encoded.get((first, previous))
        if task is None:
            for key in [key for key, done in self._encoded.items() if done.done()][:-2]:
                del self._encoded[key]
            task = asyncio.create_task(self._make(first, previous, run.head, run.checkpoints))
            self._encoded[first, previous] = task
        return await asyncio.shield(task)

    async def _make(
        self,
        first: int,
        previous: bytes,
        head: int,
        checkpoints: Sequence[FollowerCheckpoint] = (),
        before: Header | None = None,
    ) -> _Encoded:
        """A segment up to the head, at most. One that mends a hole ends `before` a segment, which names its predecessor
        already; and is as old as that, so that two processes that mend it write the same."""
        events = EventColumns()
        while (
            (last := first + events.count - 1) < head
            and events.count < self._segment_events
            and events.size_bytes < SEGMENT_BYTES
        ):
            await self._pace.step(self._read(events, last, head))
        content = await self._pace.step(
            asyncio.to_thread(
                encode_segment,
                self._store.identity,
                events,
                previous,
                made_us=before.made_us if before is not None else self._now_us(),
                stands_for=(before.previous,) if before is not None and last >= head else (),
                checkpoints=checkpoints if last >= head else (),
            )
        )
        return _Encoded(content, content[-32:], last)

    async def _read(self, events: EventColumns, after: int, head: int) -> None:
        """Take in the next events behind a position."""
        part = await self._store.read(after, min(READ_EVENTS, self._segment_events - events.count, head - after))
        name = self._store.identity.name
        if not part:
            raise ArchiveIncomplete(f"log {name} ended at {after}, and its head was greater")
        if part[0].position != after + 1:
            raise ArchiveIncomplete(f"log {name} has no position {after + 1} any more; nothing was archived beyond")
        events.add(part)

    def _now_us(self) -> int:
        return int(self._clock() * 1_000_000)

    # ---- what was lost

    async def _mend(self, copy: Copy, result: TargetResult) -> None:
        """Write anew what is missing between two segments, or cannot say what it is; the log has it, or another copy.

        Damage that does not show in names and headers is for `verify` to find, and for a person to delete.
        """
        before: Header | None = None
        damaged: list[int] = []
        for first in await copy.firsts():
            try:
                header = await copy.header(first)
            except ArchiveDamaged:
                damaged.append(first)
                continue
            end = before.last if before is not None else 0
            if header.first > end + 1:
                try:
                    link = (await copy.segment(before.first)).sha256 if before is not None else b""
                    await self._fill(copy, result, end, link, header, damaged)
                except (ArchiveError, HistoryGone):
                    result.end = end
                    raise
            if header.last > end:
                before, damaged = header, []

    async def _fill(
        self, copy: Copy, result: TargetResult, end: int, link: bytes, before: Header, damaged: Sequence[int]
    ) -> None:
        """Write the segments between a position and a segment in the place of damaged ones, if there are some."""
        left = set(damaged)
        while end < before.first - 1:
            encoded = await self._make(end + 1, link, before.first - 1, before=before)
            if not await copy.target.put(copy.name(end + 1), encoded.content, replace=end + 1 in damaged):
                return  # another process mends it
            left.discard(end + 1)
            result.written += encoded.last - end
            end, link = encoded.last, encoded.sha256
        copy.forget()
        for first in left:  # what it held is in a new segment
            await copy.target.delete(copy.name(first))


class _Run(NamedTuple):
    """What is brought to every target."""

    head: int
    """Up to here, at least."""
    checkpoints: Sequence[FollowerCheckpoint]
    tell: Progress


def _end_of(tail: Segment | None) -> tuple[int, bytes]:
    """Where a copy ends, and what the next segment names as its predecessor."""
    return (tail.header.last, tail.sha256) if tail is not None else (0, b"")


@dataclass(frozen=True, slots=True)
class _Encoded:
    content: bytes
    sha256: bytes
    last: int
