"""Whether a copy of an archived log is what was written: every byte of it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from evsync.archive.copies import Copy
from evsync.archive.segments import Segment
from evsync.errors import ArchiveDamaged, ArchiveError
from evsync.ports import Progress, unheard

_PASSES = 5
"""How often a copy is verified anew that others change meanwhile."""


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
