"""Restoring a log from its archive: which events, in what order, and how the log goes on from there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evsync.archive.copies import Copy, incarnations_of, read_copies
from evsync.archive.followers import Followers
from evsync.archive.marks import MarkedLog
from evsync.archive.segments import Header
from evsync.errors import ArchiveDamaged, ArchiveError, ArchiveIncomplete
from evsync.ports import BackupTarget, LogReader, Progress, StoreRestore, unheard
from evsync.records import RESTORES_STREAM, LogIdentity, StoredEvent, new_incarnation
from evsync.restores import restored_event

TAIL_EVENTS = 1_000
TAIL_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """Up to where a log is restored: its last whole commit at or before both. Neither: all that there is."""

    position: int | None = None
    time_us: int | None = None
    """Before the first event that is later, as `get(at=…)`: a state that the log was in, whatever clocks said."""

    def cut(self, events: Sequence[StoredEvent]) -> tuple[Sequence[StoredEvent], bool]:
        """Those of the next events, whole commits, that belong to it; and whether that is the end."""
        kept = len(events)
        if self.position is not None and events and events[-1].position > self.position:
            kept = max(self.position - events[0].position + 1, 0)
        if self.time_us is not None:
            kept = next((n for n, e in enumerate(events[:kept]) if e.time_us > self.time_us), kept)
        ends = kept < len(events)
        while kept and events[kept - 1].remaining:
            kept -= 1
        return events[:kept], ends


class Tail(LogReader, Protocol):
    """Where the end of a log comes from that its archive does not have yet."""

    @property
    def seen(self) -> int:
        """The last position that was read, also of a commit whose end has not come."""
        ...


@dataclass(slots=True)
class RestoreReport:
    """What a restore did."""

    log: str
    parent: str
    """The incarnation that was restored."""
    position: int
    """Up to where."""
    incarnation: str
    """The one that begins behind it."""
    events: int
    from_stream: int
    """How many of the events came from the JetStream stream."""
    latest_us: int
    """Time of the latest of them."""
    checkpoints: int
    """Of reactions."""
    worked_around: list[str] = field(default_factory=list)
    """What was damaged or away in a copy, and taken from another one."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Archive:
    """One incarnation of a log in all its copies."""

    identity: LogIdentity
    copies: Sequence[Copy]

    @classmethod
    async def find(cls, targets: Sequence[BackupTarget], log: str, incarnation: str | None = None) -> Archive:
        """The archive of a log: of its newest incarnation, unless one is named.

        Raises ArchiveIncomplete where there is none, ArchiveDamaged where not one segment says what it is,
        TargetUnavailable where no target answers.
        """
        found = await incarnations_of(targets, log)
        where = ", ".join(target.url for target in targets)
        if not found:
            raise ArchiveIncomplete(f"there is no archive of log {log} in {where}")
        if incarnation is not None and incarnation not in found:
            raise ArchiveIncomplete(
                f"there is no archive of incarnation {incarnation} of log {log} in {where}; there is {', '.join(found)}"
            )
        copies = found[incarnation] if incarnation is not None else next(iter(found.values()))
        errors: list[ArchiveError] = []
        for copy in copies:
            for first in await copy.firsts():
                try:
                    return cls((await copy.header(first)).identity, copies)
                except ArchiveDamaged as e:
                    errors.append(e)
        raise errors[0]

    async def end(self) -> int:
        """About how far it reaches, by what the last segments say of themselves."""
        end = 0
        for copy in self.copies:
            with contextlib.suppress(ArchiveError):
                if firsts := await copy.firsts():
                    end = max(end, (await copy.header(firsts[-1])).last)
        return end


async def restore(
    archive: Archive,
    into: StoreRestore,
    *,
    until: Until,
    marked: MarkedLog | None = None,
    tail: Tail | None = None,
    clock: Callable[[], float] = time.time,
    tell: Progress = unheard,
) -> RestoreReport:
    """Fill a store from an archive, and from `tail` what the archive does not have yet. Completes the store.

    With a mark of the log, that says up to where, whatever `until` says, and where the service's reactions were.
    The log goes on as a new incarnation, with an event that says where it was restored. Raises ArchiveDamaged,
    ArchiveIncomplete, TargetUnavailable, StoreError, and what `tail` raises; the store is then not complete.
    """
    began = time.monotonic()
    followers = Followers()
    worked_around: dict[str, None] = {}
    position = restores = latest_us = from_stream = 0
    total = await archive.end()
    if marked is not None:
        until = Until(position=marked.position)

    async for header, events, ends in _events(archive, until, tail, worked_around):
        await into.load(events)
        for event in events:
            followers.see(event)
            restores += event.stream == RESTORES_STREAM
        if header is None:
            from_stream += len(events)
        elif not ends:
            followers.at(header.checkpoints)
        if events:
            position = events[-1].position
            latest_us = max(latest_us, *(e.time_us for e in events))
        tell(position, max(total if until.position is None else min(total, until.position), position))
    if until.position is not None and until.position > max(total, position):
        raise ArchiveIncomplete(
            f"position {until.position} is not in the archive of log {archive.identity.name}, which ends at {position}"
            f" ({', '.join(c.target.url for c in archive.copies)})"
        )
    if marked is not None and position != marked.position:
        raise ArchiveIncomplete(
            f"the mark of log {archive.identity.name} is at position {marked.position}, and no commit ends there: its "
            f"last whole one before ends at {position}. Nothing was restored"
        )
    parent = archive.identity
    identity = parent.restored(position, new_incarnation())
    version = restores + 1
    await into.load([restored_event(identity, position, version, int(clock() * 1_000_000))])
    if marked is not None:
        followers = Followers()
        followers.at(marked.checkpoints)
    checkpoints = followers.checkpoints()
    await into.complete(identity, checkpoints)
    return RestoreReport(
        log=identity.name,
        parent=parent.incarnation,
        position=position,
        incarnation=identity.incarnation,
        events=position,
        from_stream=from_stream,
        latest_us=latest_us,
        checkpoints=sum(map(len, checkpoints.values())),
        worked_around=list(worked_around),
        seconds=time.monotonic() - began,
    )


async def _events(
    archive: Archive, until: Until, tail: Tail | None, worked_around: dict[str, None]
) -> AsyncIterator[tuple[Header | None, Sequence[StoredEvent], bool]]:
    """The events to restore, with the header of the segment they are from; and whether it was cut short."""
    after = 0
    async for segment, found in read_copies(archive.copies, report=lambda e: worked_around.setdefault(str(e))):
        events, ends = until.cut(found)
        yield segment.header, events, ends
        if ends:
            return
        after = segment.header.last
    if tail is None:
        return
    last = await tail.head()
    if last is None:
        raise _silent(archive, after)
    while after < last:
        found = await tail.read(after, TAIL_EVENTS, TAIL_PATIENCE_S)
        if not found:
            if tail.seen < last:
                raise _silent(archive, after)
            return  # all is read, and the end of the last commit never came
        events, ends = until.cut([e for e in found if e.position > after])
        yield None, events, ends
        if ends:
            return
        after = found[-1].position


def _silent(archive: Archive, after: int) -> ArchiveIncomplete:
    return ArchiveIncomplete(
        f"the stream of log {archive.identity.name} did not answer, and it may have what the archive has not, after "
        f"position {after}; nothing was restored. Begin again when the NATS server can be reached, or restore without "
        "--from-stream what the archive has."
    )
