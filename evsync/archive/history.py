"""Reading a log from all copies of its archive: what is damaged or away in one is taken from another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence

from evsync.archive.copies import Copy
from evsync.archive.segments import Segment
from evsync.errors import ArchiveDamaged, ArchiveError, ArchiveIncomplete
from evsync.records import StoredEvent

SegmentEvents = tuple[Segment, list[StoredEvent]]
"""A segment, and its events from some position on."""


async def read_copies(
    copies: Sequence[Copy], after: int = 0, report: Callable[[ArchiveError], None] = lambda _: None
) -> AsyncIterator[SegmentEvents]:
    """The segments behind a position, in order, with those of their events that are behind it.

    From the first copy that has them whole: where one is damaged, another one's segment takes its place, though it may
    be cut elsewhere; `report` is told of what was worked around. Ends where no copy goes on: a segment whose beginning
    was read from another copy, and that cannot say how far it reached, is reported and does not keep the rest back.
    Raises ArchiveDamaged where all are damaged, ArchiveIncomplete where positions are in none, TargetUnavailable where
    none can be reached.
    """
    readings: list[_Reading] = []
    absent: list[ArchiveError] = []
    for copy in copies:
        try:
            readings.append(_Reading(copy, await copy.firsts()))
        except ArchiveError as e:
            absent.append(e)
    before: tuple[_Reading, Segment] | None = None
    while True:
        errors = list(absent)
        for reading in readings:
            last = before[1] if before is not None and before[0] is reading else None
            try:
                found = await reading.from_position(after + 1, last)
            except ArchiveError as e:
                errors.append(e)
                continue
            if found is not None:
                break
        else:
            _check_end(readings, errors, after, report if before is not None else None)
            return
        for error in errors:
            report(error)
        readings.remove(reading)
        readings.insert(0, reading)  # stay with the one that works
        before, after = (reading, found[0]), found[0].header.last
        yield found


def _check_end(
    readings: Sequence[_Reading],
    errors: Sequence[ArchiveError],
    after: int,
    report: Callable[[ArchiveError], None] | None,
) -> None:
    """Raise what keeps the log from being read behind a position; nothing if that is its end.

    With `report` segments were read before: what may reach no farther than these is only reported.
    """
    damaged = [e for e in errors if isinstance(e, ArchiveDamaged)]
    if report is not None:
        for error in damaged:
            if isinstance(error, _EndUnknown):
                report(error)
        damaged = [e for e in damaged if not isinstance(e, _EndUnknown)]
    if damaged:
        raise damaged[0] from (damaged[1] if len(damaged) > 1 else None)
    if beyond := [r.firsts[-1] for r in readings if r.firsts and r.firsts[-1] > after]:
        raise ArchiveIncomplete(
            f"positions {after + 1} to {min(beyond) - 1} of log {readings[0].copy.log} are in no copy, and there are "
            f"segments beyond ({', '.join(r.copy.target.url for r in readings)})"
        )
    if errors and not readings:
        raise errors[0]


class _EndUnknown(ArchiveDamaged):
    """A segment that begins before the position that is due, and cannot say whether it reaches so far."""


class _Reading:
    """A copy that can be reached, and where its segments began when the reading began."""

    def __init__(self, copy: Copy, firsts: Sequence[int]) -> None:
        self.copy, self.firsts = copy, firsts

    async def from_position(self, due: int, before: Segment | None) -> SegmentEvents | None:
        """The segment that holds a position, and its events from there on; None if there is none.

        `before`: the copy's segment that was read before. Raises ArchiveDamaged.
        """
        damage: ArchiveDamaged | None = None
        unknown: _EndUnknown | None = None
        # The one that begins last before the position, or a merged one that begins earlier and reaches farther.
        for first in reversed(self.firsts[: bisect_right(self.firsts, due)]):
            try:
                header = await self.copy.header(first)
            except ArchiveDamaged as e:
                unknown = unknown or _EndUnknown(e.target, e.name, e.what)
                damage = damage or (e if first == due else None)
                continue
            if header.last < due:
                continue
            try:
                return await self._whole(first, due, before)
            except ArchiveDamaged as e:
                damage = damage or e
        if error := damage or unknown:
            raise error
        return None

    async def _whole(self, first: int, due: int, before: Segment | None) -> SegmentEvents:
        segment = await self.copy.segment(first)
        if before is not None and first == due and not before.precedes(segment.header):
            what = f"it does not name the segment before it ({before.header.name}) as its predecessor"
            raise ArchiveDamaged(self.copy.target.url, segment.header.name, what)
        return segment, (await self.copy.events(segment))[due - first :]


class Portions:
    """Events of whole segments, given out a few at a time."""

    def __init__(self, events: list[StoredEvent] | None = None) -> None:
        self._events, self._place = events or [], 0

    def next(self, limit: int) -> list[StoredEvent]:
        """The next events, about `limit` of them, whole commits; [] where there are no more."""
        begin, events = self._place, self._events
        end = min(begin + max(limit, 1), len(events))
        if end > begin:
            end += events[end - 1].remaining  # a segment ends at the end of a commit
        self._place = end
        return events[begin:end]
