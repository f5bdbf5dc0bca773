"""Restoring a log from its archive: which events, in what order, and how the log goes on from there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from evsync.archive.copies import Archive
from evsync.archive.followers import Followers
from evsync.archive.history import read_copies
from evsync.archive.marks import MarkedLog
from evsync.archive.ownership import Follows, OnlyLog, PlannedLog, ShardPlan, Surveyed, ends_that_fit, plan_shards
from evsync.archive.rescue import FencedStore, OwnLog, Rescue
from evsync.archive.segments import Header
from evsync.control import OWN_STREAMS, RESTORES_STREAM
from evsync.errors import ArchiveIncomplete
from evsync.ports import LogReader, Progress, StoreRestore, unheard
from evsync.records import LogIdentity, StoredEvent, new_incarnation, to_datetime
from evsync.restores import restored_event
from evsync.stores.slot_events import SlotEvent, slot_event

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
    from_shards: int = 0
    """Events that its archive does not have, and the shards do that live on: they are behind the position."""
    left_out: int = 0
    """Events of a shard that its archive has, and that other shards' archives do not fit."""
    worked_around: list[str] = field(default_factory=list)
    """What was damaged or away in a copy, and taken from another one."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One log that is to be restored: from where, and into what."""

    archive: Archive
    into: StoreRestore
    marked: MarkedLog | None = None
    """Its part of a mark: up to where, whatever else is asked for, and where the service's reactions were."""
    tail: Tail | None = None
    """Where the end of the log comes from that the archive does not have yet."""

    def until(self, until: Until) -> Until:
        """Up to where, if so far is asked for."""
        return until if self.marked is None else Until(position=self.marked.position)


async def restore_shards(
    parts: Mapping[str, Part],
    *,
    until: Until,
    tell: Progress = unheard,
) -> dict[str, RestoreReport]:
    """Fill the stores of a service, each from its log's archive and tail. Completes the stores.

    Several are shards, and restored up to where their logs fit together: their archives are read twice, first for what
    they say of slots. Each log goes on as a new incarnation, with an event that says where it was restored. Raises
    ArchiveDamaged, ArchiveIncomplete (also where there is nothing at the time that is asked for), TargetUnavailable,
    StoreError, and what tails raise; no store is complete then, unless it is one's completion that failed.
    """
    ends = [await part.archive.end() for part in parts.values()]
    read = _counting(sum(ends) * (2 if len(parts) > 1 else 1), tell)
    plans = await _planned(parts, until, read) if len(parts) > 1 else dict.fromkeys(parts)
    filled = {}
    into = {shard: part.into for shard, part in parts.items()}
    for shard, part in parts.items():
        identity, plan = part.archive.identity, plans[shard]
        follows = OnlyLog(identity.name) if plan is None else PlannedLog(identity.name, identity.slots, plan)
        filled[shard] = _Filling(part, follows, plan, into)
        await filled[shard].fill(until, read)
    await _check_any(until, list(filled.values()))
    # The first shard last: without its store no service can be opened on those of the others.
    order = sorted(parts, key=lambda shard: (plan := plans[shard]) is not None and plan.owns_slots)
    reports = {shard: await filled[shard].complete() for shard in order}
    return {shard: reports[shard] for shard in parts}


async def restore_beside(
    part: Part,
    stores: Mapping[str, FencedStore],
    *,
    until: Until,
    tell: Progress = unheard,
) -> RestoreReport:
    """Fill the store of one shard, beside the others' that live on. Completes the store.

    The others are fenced first: from then on they take no slot that the log has lost. Then what they have of the log
    is written behind its end, in one commit with the event that says where it was restored. Raises as
    `restore_shards`, and ArchiveIncomplete where what the others say does not fit the archive.
    """
    own = OwnLog()
    filling = _Filling(part, own)
    await filling.fill(until, _counting(await part.archive.end(), tell))
    await _check_any(until, [filling])
    identity = part.archive.identity.restored(filling.position, new_incarnation())
    for store in stores.values():
        await store.fence(identity)
    rescue = Rescue(identity, filling.position, own, stores)
    await rescue.plan()
    await rescue.bring(part.into)
    return await filling.complete(identity, rescue)


def _counting(total: int, tell: Progress) -> Callable[[int], None]:
    """Is told how many events were read just now, and tells how many there were so far."""
    done = 0

    def read(events: int) -> None:
        nonlocal done
        done += events
        tell(done, max(total, done))

    return read


async def _check_any(until: Until, filled: Sequence[_Filling]) -> None:
    """Raise ArchiveIncomplete where the logs have nothing at the time that is asked for: a slip, most likely."""
    if until.time_us is None or any(filling.position or filling.part.marked for filling in filled):
        return
    for archive in (filling.part.archive for filling in filled):
        async for _, events in read_copies(archive.copies):
            raise ArchiveIncomplete(
                f"log {archive.identity.name} has no whole commit at or before "
                f"{to_datetime(until.time_us).isoformat()}: its first event is of "
                f"{to_datetime(events[0].time_us).isoformat()}. Nothing was restored: name a later time"
            )


async def _planned(parts: Mapping[str, Part], until: Until, read: Callable[[int], None]) -> dict[str, ShardPlan | None]:
    """What becomes of each shard. Raises ArchiveIncomplete."""
    logs = {shard: await _survey(part, until, read) for shard, part in parts.items()}
    ends = ends_that_fit(logs)
    for shard, part in parts.items():
        if part.marked is not None and part.marked.position != ends[shard]:
            raise ArchiveIncomplete(
                f"the mark of log {part.archive.identity.name} is at position {part.marked.position}, and what its "
                f"archive has, and the other shards' archives fit, ends at {ends[shard]}. Nothing was restored"
            )
        if not part.archive.copies and part.marked is None and (named := _naming(logs, ends, shard)):
            raise ArchiveIncomplete(
                f"there is no archive of log {part.archive.identity.name}, and the log of shard {named!r} says that "
                "slots went there: nothing was restored. Name the place that has it, with --from"
            )
    return dict(plan_shards(logs, ends))


def _naming(logs: Mapping[str, Surveyed], ends: Mapping[str, int], shard: str) -> str | None:
    """A shard whose log names another one."""
    names = (n for n, log in logs.items() for s in log.said if s.shard == shard and s.position <= ends[n])
    return next(names, None)


async def _survey(part: Part, until: Until, read: Callable[[int], None]) -> Surveyed:
    """What a log says of slots, and up to where it can be restored."""
    said: list[SlotEvent] = []
    end, used = 0, False
    async for _, events, _ in _events(part, part.until(until), {}):
        for event in events:
            if not event.stream.startswith(OWN_STREAMS):
                used = True
            elif (found := slot_event(event)) is not None:
                said.append(found)
        end = events[-1].position if events else end
        read(len(events))
    return Surveyed(part.archive.identity, end, said, used)


class _Filling:
    """One log on its way into its store, and what of it others have to hold into theirs."""

    def __init__(
        self, part: Part, follows: Follows, plan: ShardPlan | None = None, into: Mapping[str, StoreRestore] = {}
    ) -> None:
        """`plan` and `into`: of several shards, what becomes of this one, and all of their stores."""
        self.part, self._follows, self._plan, self._into = part, follows, plan, into
        self._followers = Followers()
        self._worked_around: dict[str, None] = {}
        self.position = self._restores = self._latest_us = self._from_stream = 0
        self._began = time.monotonic()

    async def fill(self, until: Until, read: Callable[[int], None]) -> None:
        """Load the events. Raises ArchiveIncomplete where they end too early."""
        part, identity = self.part, self.part.archive.identity
        until = part.until(until) if self._plan is None else Until(position=self._plan.end)
        total = await part.archive.end()
        async for header, events, ends in _events(part, until, self._worked_around):
            imports = self._follows.see(events)
            await part.into.load(events)
            for shard, arrived in imports.items():
                await self._into[shard].import_events(arrived)
            self._count(header, events, ends)
            read(len(events))
        position = self.position
        if until.position is not None and until.position > max(total, position):
            raise ArchiveIncomplete(
                f"position {until.position} is not in the archive of log {identity.name}, which ends at {position} "
                f"({', '.join(c.target.url for c in part.archive.copies)})"
            )
        if part.marked is not None and position != part.marked.position:
            raise ArchiveIncomplete(
                f"the mark of log {identity.name} is at position {part.marked.position}, and no commit ends there: its "
                f"last whole one before ends at {position}. Nothing was restored"
            )

    def _count(self, header: Header | None, events: Sequence[StoredEvent], ends: bool) -> None:
        for event in events:
            self._followers.see(event)
            self._restores += event.stream == RESTORES_STREAM
        if header is None:
            self._from_stream += len(events)
        elif not ends:
            self._followers.at(header.checkpoints)
        if events:
            self.position = events[-1].position
            self._latest_us = max(self._latest_us, *(e.time_us for e in events))

    async def complete(self, identity: LogIdentity | None = None, rescue: Rescue | None = None) -> RestoreReport:
        """Say in the log that it was restored, and make of it a store that can be opened."""
        part, parent, position = self.part, self.part.archive.identity, self.position
        identity = identity or parent.restored(position, new_incarnation())
        if not part.archive.copies:
            identity = replace(identity, ancestry=())
        slots = self._plan.slots if self._plan is not None else None
        rows = [restored_event(identity, position, self._restores + 1, time.time_ns() // 1000)]
        if rescue is not None:
            rows = rescue.rows(rows[0])
            slots = rescue.slots(rows)
        await part.into.load(rows)
        if part.marked is not None:
            self._followers = Followers()
            self._followers.at(part.marked.checkpoints)
        checkpoints = self._followers.checkpoints()
        await part.into.complete(identity, checkpoints, slots)
        return RestoreReport(
            log=identity.name,
            parent=parent.incarnation,
            position=position,
            incarnation=identity.incarnation,
            events=position,
            from_stream=self._from_stream,
            latest_us=self._latest_us,
            checkpoints=sum(map(len, checkpoints.values())),
            from_shards=rescue.found if rescue is not None else 0,
            left_out=self._plan.left_out if self._plan is not None else 0,
            worked_around=list(self._worked_around),
            seconds=time.monotonic() - self._began,
        )


async def _events(
    part: Part, until: Until, worked_around: dict[str, None]
) -> AsyncIterator[tuple[Header | None, Sequence[StoredEvent], bool]]:
    """The events to restore, with the header of the segment they are from; and whether it was cut short."""
    archive, tail, after = part.archive, part.tail, 0
    if not archive.copies:
        return
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
