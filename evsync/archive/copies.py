"""One copy of an archived log: the segments of one incarnation in one place, and whether they are what was written."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from evsync.archive.segments import (
    HEAD_BYTES,
    Header,
    Segment,
    decode_header,
    decode_segment,
    first_of,
    folder,
    incarnation_of,
    segment_name,
)
from evsync.errors import ArchiveDamaged, ArchiveError, ArchiveIncomplete, DecodingError, TargetUnavailable
from evsync.ports import BackupTarget, Progress, unheard
from evsync.records import LogIdentity, StoredEvent

_PASSES = 5
"""How often a copy is verified anew that others change meanwhile."""


class Copy:
    """The segments of one incarnation of a log in one target."""

    def __init__(self, target: BackupTarget, log: str, incarnation: str) -> None:
        self.target, self.log, self.incarnation = target, log, incarnation
        service, _, shard = log.partition(".")
        self._identity = LogIdentity(service, shard, incarnation)
        self._headers: dict[int, Header] = {}

    async def firsts(self) -> list[int]:
        """The positions at which there is a segment that begins there, by the names; in order."""
        names = await self.target.list(folder(self.log, self.incarnation))
        return sorted(first for name in names if (first := first_of(name)) is not None)

    async def strangers(self) -> list[str]:
        """Names beside the segments that are none."""
        return [n for n in await self.target.list(folder(self.log, self.incarnation)) if first_of(n) is None]

    async def segment(self, first: int) -> Segment:
        """The segment that begins at a position, verified. Raises ArchiveDamaged."""
        name = self.name(first)
        content = await self.target.get(name)
        if content is None:
            self.forget()  # it may be in a merged one by now, which begins before it
            raise ArchiveDamaged(self.target.url, name, "it is missing")
        try:
            return await asyncio.to_thread(decode_segment, name, content)
        except DecodingError as e:
            raise ArchiveDamaged(self.target.url, name, str(e)) from e

    async def events(self, segment: Segment) -> list[StoredEvent]:
        """The events of one of its segments. Raises ArchiveDamaged."""
        try:
            return await asyncio.to_thread(segment.events)
        except DecodingError as e:
            raise ArchiveDamaged(self.target.url, segment.header.name, str(e)) from e

    async def header(self, first: int) -> Header:
        """What the segment that begins at a position says of itself. Its hash is not looked at. Raises ArchiveDamaged.

        Remembered, until one is found missing: another process may have merged it.
        """
        if (known := self._headers.get(first)) is not None:
            return known
        name = self.name(first)
        head = await self.target.get(name, most=HEAD_BYTES)
        try:
            found = decode_header(name, head or b"")
        except DecodingError:
            found = (await self.segment(first)).header  # a long header, or else the reason
        self._headers[first] = found
        return found

    def forget(self) -> None:
        """Segments were written or taken away."""
        self._headers.clear()

    def name(self, first: int) -> str:
        """Where the segment that begins at a position is kept."""
        return segment_name(self._identity, first)


@dataclass(slots=True)
class CopyReport:
    """What `verify_copy` found: whole, as far as it reaches, if `problems` is empty."""

    target: str
    log: str
    incarnation: str
    last: int = 0
    """Everything up to here is whole."""
    end: int = 0
    """The last position in any segment that could be read."""
    segments: int = 0
    events: int = 0
    size_bytes: int = 0
    latest_us: int = 0
    """Time of its latest event."""
    made_us: int = 0
    """When its last segment was made."""
    leftovers: list[str] = field(default_factory=list)
    """Segments whose events are in a merged one too: harmless, and taken away by the next backup."""
    problems: list[ArchiveError] = field(default_factory=list)


async def verify_copy(copy: Copy, tell: Progress = unheard) -> CopyReport:
    """Read every byte of a copy; name whatever is damaged, missing, doubled or in another's place.

    A copy that has lost its end is whole as far as it reaches: compare `last` with other copies and the log. Raises
    TargetUnavailable.
    """
    for _ in range(_PASSES):
        firsts = await copy.firsts()
        report = await _verify(copy, firsts, tell)
        if not report.problems or await copy.firsts() == firsts:
            break  # else a backup has merged segments meanwhile
    return report


async def _verify(copy: Copy, firsts: Sequence[int], tell: Progress) -> CopyReport:
    report = CopyReport(copy.target.url, copy.log, copy.incarnation)
    for name in await copy.strangers():
        report.problems.append(ArchiveDamaged(report.target, name, "it is not the name of a segment"))
    before: Segment | None = None
    whole = True
    for number, first in enumerate(firsts):
        tell(number, len(firsts))
        try:
            segment = await copy.segment(first)
            if segment.header.last <= report.end:
                report.leftovers.append(segment.header.name)
                continue
            _check_place(copy, report.end, before, segment)
            events = await copy.events(segment)
        except ArchiveDamaged as e:
            report.problems.append(e)
            whole, before = False, None
            continue
        if first != report.end + 1:
            missing = f"positions {report.end + 1} to {first - 1} are in no segment that can be read"
            if whole or not report.problems:
                report.problems.append(ArchiveDamaged(report.target, copy.name(report.end + 1), missing))
            whole = False
        report.segments, report.events = report.segments + 1, report.events + len(events)
        report.size_bytes += len(segment.body)
        report.end, report.made_us = segment.header.last, segment.header.made_us
        report.latest_us = max(report.latest_us, segment.header.latest_us)
        if whole:
            report.last = report.end
        before = segment
    tell(len(firsts), len(firsts))
    return report


def _check_place(copy: Copy, end: int, before: Segment | None, segment: Segment) -> None:
    """Raise ArchiveDamaged for a segment that does not belong behind the one before it, or into this log."""
    header = segment.header
    what = None
    if header.first <= end:
        what = f"it begins at {header.first} and goes on to {header.last}, and position {end} was in the one before"
    elif header.first == 1 and header.previous:
        what = "it is the first, and names a predecessor"
    elif before is not None and header.first == end + 1 and not before.precedes(header):
        what = (
            f"it names another predecessor than the segment that stands before it ({before.header.name}): one of them "
            "is of another history"
        )
    if what is not None:
        raise ArchiveDamaged(copy.target.url, header.name, what)


async def incarnations_of(targets: Sequence[BackupTarget], log: str) -> dict[str, list[Copy]]:
    """The copies of each archived incarnation of a log, that with the newest last segment first.

    Places that do not answer are passed over, unless that leaves nothing: raises TargetUnavailable.
    """
    found: dict[str, list[Copy]] = {}
    newest: dict[str, int] = {}
    absent: list[TargetUnavailable] = []
    for target in targets:
        try:
            names = await target.list(f"{log}/")
            for incarnation in dict.fromkeys(i for n in names if (i := incarnation_of(n)) is not None):
                copy = Copy(target, log, incarnation)
                newest[incarnation] = max(newest.get(incarnation, 0), await _made_us(copy))
                found.setdefault(incarnation, []).append(copy)
        except TargetUnavailable as e:
            absent.append(e)
    if absent and not found:
        raise absent[0]
    return dict(sorted(found.items(), key=lambda item: newest[item[0]], reverse=True))


async def _made_us(copy: Copy) -> int:
    """When the last segment was made of which that can be read."""
    for first in reversed(await copy.firsts()):
        with contextlib.suppress(ArchiveDamaged):
            return (await copy.header(first)).made_us
    return 0


async def read_copies(
    copies: Sequence[Copy], after: int = 0, report: Callable[[ArchiveError], None] | None = None
) -> AsyncIterator[tuple[Segment, list[StoredEvent]]]:
    """The segments behind a position, in order, with those of their events that are behind it.

    From the first copy that has them whole: where one is damaged, another one's segment takes its place, though it may
    be cut elsewhere; `report` is told of what was worked around. Ends where no copy goes on: a segment whose beginning
    was read from another copy, and that cannot say how far it reached, is reported and does not keep the rest back.
    Raises ArchiveDamaged where all are damaged, ArchiveIncomplete where positions are in none, TargetUnavailable where
    none can be reached.
    """
    lists: list[list[int]] = []
    absent: list[ArchiveError] = []
    for copy in copies:
        try:
            lists.append(await copy.firsts())
        except ArchiveError as e:
            lists.append([])
            absent.append(e)
    before: tuple[int, Segment] | None = None
    order = list(range(len(copies)))
    while True:
        errors: list[ArchiveError] = list(absent)
        for i in order:
            try:
                covering = await _covering(
                    copies[i], lists[i], after + 1, before[1] if before and before[0] == i else None
                )
            except ArchiveError as e:
                errors.append(e)
                continue
            if covering is not None:
                segment, events = covering
                if report is not None:
                    for error in errors:
                        report(error)
                order.sort(key=lambda n, i=i: n != i)  # type: ignore[misc]  # stay with the copy that works
                before = i, segment
                after = segment.header.last
                yield segment, events
                break
        else:
            if before is not None and report is not None:
                for error in errors:
                    if isinstance(error, _EndUnknown):
                        report(error)
            damaged = [
                e for e in errors if isinstance(e, ArchiveDamaged) and not (before and isinstance(e, _EndUnknown))
            ]
            if damaged:
                raise damaged[0] from (damaged[1] if len(damaged) > 1 else None)
            beyond = [firsts[-1] for firsts in lists if firsts and firsts[-1] > after]
            if beyond:
                raise ArchiveIncomplete(
                    f"positions {after + 1} to {min(beyond) - 1} of log {copies[0].log} are in no copy, and there are "
                    f"segments beyond ({', '.join(c.target.url for c in copies)})"
                )
            if len(absent) == len(copies):
                raise absent[0]
            return


class _EndUnknown(ArchiveDamaged):
    """A segment that begins before the position that is due, and cannot say whether it reaches so far."""


async def _covering(
    copy: Copy, firsts: Sequence[int], due: int, before: Segment | None
) -> tuple[Segment, list[StoredEvent]] | None:
    """The copy's segment that holds a position, and its events from there on; None if there is none.

    Raises ArchiveDamaged.
    """
    damage: ArchiveDamaged | None = None
    unknown: _EndUnknown | None = None
    # The one that begins last before the position, or a merged one that begins earlier and reaches farther.
    for first in reversed(firsts[: bisect_right(firsts, due)]):
        try:
            header = await copy.header(first)
        except ArchiveDamaged as e:
            unknown = unknown or _EndUnknown(e.target, e.name, e.what)
            damage = damage or (e if first == due else None)
            continue
        if header.last < due:
            continue
        try:
            segment = await copy.segment(first)
            if before is not None and segment.header.first == due and not before.precedes(segment.header):
                what = f"it does not name the segment before it ({before.header.name}) as its predecessor"
                raise ArchiveDamaged(copy.target.url, segment.header.name, what)
            events = await copy.events(segment)
        except ArchiveDamaged as e:
            damage = damage or e
            continue
        return segment, events[due - segment.header.first :]
    if damage or unknown:
        raise damage or unknown  # type: ignore[misc]  # one of them is there
    return None
