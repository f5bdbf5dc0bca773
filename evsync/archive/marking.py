"""Making a mark of several services: their heads, what depends on what beyond them, backups, and the mark itself.

Nothing is stopped for it. All heads are looked at, then looked at again. A commit that was there at the first look
depends on nothing that was not there at the second; so what may have to be left out was saved between the two, or
since, and only that is read. For the same reason no mark is below the first look.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from evsync.archive.backup import BackupReport, Backups
from evsync.archive.dependence import Dependent, dependents_of, lowered
from evsync.archive.followers import Followers, stored_checkpoints
from evsync.archive.marks import Mark, MarkedLog, check_name, encode_mark, file_of
from evsync.archive.policy import BackupPolicy
from evsync.archive.restore import Until
from evsync.archive.segments import FollowerCheckpoint
from evsync.errors import ArchiveError, ArchiveIncomplete, ConfigurationError
from evsync.ports import BackupTarget, Progress, Store, unheard
from evsync.records import StoredEvent, before_commit

READ_EVENTS = 1_000


@dataclass(frozen=True, slots=True)
class ToMark:
    """A log that is to be part of a mark, and where it is archived."""

    store: Store
    targets: Sequence[BackupTarget]
    policy: BackupPolicy
    followers: Sequence[str] = ()
    """The names of the service's reactions."""

    @property
    def name(self) -> str:
        return self.store.identity.name


@dataclass(slots=True)
class MarkReport:
    """What was marked."""

    name: str
    logs: list[MarkedPlace] = field(default_factory=list)


@dataclass(slots=True)
class MarkedPlace:
    """One log's part of a mark."""

    log: str
    incarnation: str
    position: int
    head: int
    """Of the log, as far as it could have been marked."""
    places: list[str] = field(default_factory=list)
    """That hold the log up to the mark, and the mark."""
    problems: list[str] = field(default_factory=list)
    """Why other places do not."""


class _Look:
    """What is known of one log while a mark is made."""

    def __init__(self, log: ToMark) -> None:
        self.log = log
        self.checkpoints: list[FollowerCheckpoint] = []
        self.seen = self.limit = self.head = 0
        self.events: list[StoredEvent] = []

    async def begin(self) -> None:
        """The first look. Checkpoints before the head: so their answers are at or below it."""
        self.checkpoints = await stored_checkpoints(self.log.store, self.log.followers)
        self.seen = await self.log.store.head()

    async def read(self) -> None:
        """What was appended since the first look, and the last event before; `head` is that of whole commits."""
        end = await self.log.store.head()
        after = max(self.seen - 1, 0)
        while after < end and (part := await self.log.store.read(after, READ_EVENTS)):
            self.events += part
            after = part[-1].position
        kept, _ = Until(position=self.limit).cut(self.events)
        if kept:
            self.head = kept[-1].position
        elif self.events:  # the last commit was cut by the look
            self.head = before_commit(self.events[0])

    def part(self, position: int) -> MarkedLog:
        """The log's part of the mark at a position."""
        known = Followers()
        known.at(self.checkpoints)
        for event in self.events:
            if self.seen < event.position <= position:
                known.see(event)
        checkpoints = tuple(FollowerCheckpoint(f, c) for f, kept in known.checkpoints().items() for c in kept)
        return MarkedLog(self.log.store.identity.incarnation, position, checkpoints)


async def decide(name: str, logs: Sequence[ToMark]) -> tuple[Mark, list[int]]:
    """A mark of these logs as they are now, kept nowhere yet; and the heads that it was lowered from."""
    looks = [_Look(log) for log in logs]
    for look in looks:
        await look.begin()
    for look in looks:
        look.limit = await look.log.store.head()
    for look in looks:
        await look.read()
    identities = {look.log.name: look.log.store.identity for look in looks}
    positions = {e.id: (look.log.name, e.position) for look in looks for e in look.events}
    dependents: list[Dependent] = []
    for look in looks:
        whole = [e for e in look.events if e.position <= look.head]
        dependents += dependents_of(look.log.name, whole, identities, positions)
    marks = lowered({look.log.name: look.head for look in looks}, dependents)
    parts = {look.log.name: look.part(marks[look.log.name]) for look in looks}
    return Mark(name, time.time_ns() // 1000, parts), [look.head for look in looks]


async def make_mark(name: str, logs: Sequence[ToMark], tell: Progress = unheard) -> MarkReport:
    """Mark these logs, bring all of them to their places up to the mark, and put the mark beside them.

    Raises ConfigurationError for a name that is taken or cannot be one, and a log that is named twice;
    ArchiveIncomplete where fewer places than its policy needs hold a log up to the mark, or the mark; StoreError. A
    mark that is in too few places can be made again under another name.
    """
    check_name(name)
    if twice := {log.name for log in logs if [other.name for other in logs].count(log.name) > 1}:
        raise ConfigurationError(f"log {', '.join(sorted(twice))} is named twice: one mark has one place in each log")
    await _check_free(name, logs)
    mark, heads = await decide(name, logs)
    content = encode_mark(mark)
    report = MarkReport(name)
    for log, head in zip(logs, heads, strict=True):
        part = mark.logs[log.name]
        place = MarkedPlace(log.name, part.incarnation, part.position, head)
        report.logs.append(place)
        policy = log.policy
        backups = Backups(log.store, log.targets, copies=policy.copies, keep=policy.keep, followers=log.followers)
        _check(log, place, await backups.run(tell))
    for log, place in zip(logs, report.logs, strict=True):
        await _put(log, place, file_of(log.name, name), content)
    return report


async def _check_free(name: str, logs: Sequence[ToMark]) -> None:
    for log in logs:
        for target in log.targets:
            try:
                taken = await target.get(file_of(log.name, name)) is not None
            except ArchiveError:
                continue  # the backup will say so
            if taken:
                raise ConfigurationError(
                    f"there is a mark {name!r} of log {log.name} in {target.url} already: nothing was done. Give the "
                    "new one another name"
                )


def _check(log: ToMark, place: MarkedPlace, report: BackupReport) -> None:
    """Raise ArchiveIncomplete where too few places hold the log up to the mark."""
    place.places = [t.target for t in report.targets if t.end >= place.position]
    place.problems = [t.error for t in report.targets if t.error is not None]
    if len(place.places) < log.policy.copies:
        raise ArchiveIncomplete(
            f"log {log.name} is archived up to position {place.position} in {len(place.places)} places, and its policy "
            f"needs {log.policy.copies}; nothing was marked. {' '.join(place.problems)}"
        )


async def _put(log: ToMark, place: MarkedPlace, file: str, content: bytes) -> None:
    holding, place.places = place.places, []
    for target in log.targets:
        if target.url not in holding:
            continue
        try:
            if not await target.put(file, content):
                raise ArchiveIncomplete(f"somebody else put a mark of that name into {target.url} meanwhile")
            place.places.append(target.url)
        except ArchiveError as e:
            place.problems.append(str(e))
    if len(place.places) < log.policy.copies:
        raise ArchiveIncomplete(
            f"the mark is beside log {log.name} in {len(place.places)} places, and its policy needs "
            f"{log.policy.copies}: make it again, under another name. {' '.join(place.problems)}"
        )
