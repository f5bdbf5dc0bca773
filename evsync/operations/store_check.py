"""What must be true of a log, found out by reading all of it.

`LogCheck` is told of each stored event in turn and says what is wrong with it; `check_store` walks a store past it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from evsync.codec.events import EventCodec, unreadable
from evsync.codec.values import unpack
from evsync.control import RESTORES_STREAM, SLOT_OPENED, SLOTS_STREAM, is_control
from evsync.errors import CodecError, DecodingError, StoreError, StoreUnavailable
from evsync.inspection import Inspectable, Unreadable
from evsync.interop import states
from evsync.ports import Progress, SlotStore, unheard
from evsync.records import LogIdentity, StoredEvent, command_of, decode_meta, event_id
from evsync.sharding.handover import BEGINNING
from evsync.sharding.slots import slot_of
from evsync.stores.trimmed import Trimmed

BATCH = 500
MOST_PROBLEMS = 10
"""So many are told."""
_FAR = 2**62
RESTORE = "Stop what writes to this store, keep a copy of it as it is, and restore it from a backup."
"""What there is to do where stored events were lost or changed."""
Reader = Callable[[StoredEvent], None]
"""Raises CodecError for an event that cannot be read, or is of a type that nobody knows."""


class Problem(NamedTuple):
    """One thing that is not as it must be."""

    position: int
    """Where; 0 for the store as a whole."""
    law: str
    """Which rule is broken: positions, versions, commits, ids, slots, incarnation, readability, files."""
    text: str
    remedy: str

    def __str__(self) -> str:
        where = f"position {self.position}: " if self.position else ""
        return where + self.text


@dataclass(slots=True)
class StoreReport:
    """What `check_store` found. The store is as it must be if `problems` is empty."""

    log: str
    incarnation: str
    head: int
    checked: int = 0
    """How many events were read."""
    streams: int = 0
    given: int = 0
    """Of the events, those that another library wrote, which gives versions itself."""
    problems: list[Problem] = field(default_factory=list)
    """In order of position; the first few only."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def reader(codec: EventCodec | None) -> Reader:
    """How a service's events are read: those of its aggregates as the codec does, those that another library wrote as
    that library does, evsync's own and those of an unknown service as msgpack."""

    def read(event: StoredEvent) -> None:
        try:
            decode_meta(event.meta)
            if states.is_of_library(event):
                states.decode(event)
            elif codec is not None and not is_control(event.type):
                codec.fields_of(codec.coding_of(event.type), event.data, event.meta)
            elif type(unpack(event.data)) is not dict:
                raise DecodingError("its data are no map of fields")
        except Exception as e:  # of bytes that are anything, the library's decoding raises anything
            if isinstance(e, CodecError) and repr(event.stream) in str(e):
                raise
            raise unreadable(event, e) from e

    return read


class LogCheck:
    """The laws of a log, for the events of one log in order. After a problem it goes on from what it found."""

    def __init__(self, identity: LogIdentity, read: Reader, trimmed: int = 0) -> None:
        """Up to position `trimmed` events may be missing, and of each stream those before its first one."""
        self.last, self.checked = 0, 0
        self._trimmed = trimmed
        self._identity, self._read = identity, read
        self._before: StoredEvent | None = None
        self._at_start = True  # of a commit, for certain
        self._brought_back = False  # the events of this commit, by a restore
        self._versions = _Versions(begin_anywhere=trimmed > 0)
        self.came: set[int] = set()
        """Slots that were opened here: their streams go on behind events that are in the logs of other shards."""

    @property
    def given(self) -> int:
        """How many events were written by another library."""
        return self._versions.given

    @property
    def streams(self) -> int:
        """How many streams were met."""
        return len(self._versions.tops)

    def see(self, found: StoredEvent | Unreadable) -> Iterator[Problem]:
        """What is wrong with the next one."""
        due, self.last = self.last + 1, found.position
        self.checked += 1
        if due < found.position <= self._trimmed + 1:
            self._before, self._at_start = None, False
        elif found.position != due:
            due = max(due, self._trimmed + 1)
            gone = f"positions {due} to {found.position - 1} are" if found.position > due + 1 else "this position is"
            yield Problem(due, "positions", f"{gone} missing; the next event stands at {found.position}", RESTORE)
            self._before, self._at_start = None, False
        if isinstance(found, Unreadable) or (wrong := _wrong_kind(found)):
            reason = found.reason if isinstance(found, Unreadable) else wrong
            yield Problem(found.position, "readability", f"no event of this log: {reason}", RESTORE)
            self._before, self._at_start = None, False
            return
        yield from self._commit(found)
        yield from self._version(found)
        yield from self._place(found)
        try:
            self._read(found)
        except CodecError as e:
            yield Problem(found.position, "readability", _ended(e), _READABLE)

    def end(self, head: int) -> Iterator[Problem]:
        """What is wrong with the end of the log, whose head was `head` before the last event was looked for."""
        if self.last < head:
            text = f"the log's head is {head}, and the last event that is there stands at {self.last}"
            yield Problem(self.last + 1, "positions", text, RESTORE)
        elif self._before is not None and self._before.remaining:
            text = f"the log ends within a commit, of which {self._before.remaining} more events should follow"
            yield Problem(self.last, "commits", text, RESTORE)

    def _commit(self, e: StoredEvent) -> Iterator[Problem]:
        before, start, self._before = self._before, self._at_start, e
        if before is None or not before.remaining:
            self._brought_back = e.stream == RESTORES_STREAM
        self._at_start = False
        if e.remaining < 0 or len(e.id) != 16:
            yield Problem(e.position, "ids", f"remaining = {e.remaining}, id {e.id.hex()}: no event has these", RESTORE)
            self._before = None
        elif before is not None and before.remaining:
            if self._brought_back:  # by a restore: they have kept the ids that they had
                if e.remaining != before.remaining - 1:
                    text = f"{before.remaining - 1} more events of its commit should follow, and it says {e.remaining}"
                    yield Problem(e.position, "commits", text, RESTORE)
                return
            if e.id == command_of(e.id) != command_of(before.id):
                text = f"{before.remaining} more events of the commit before should follow, and another begins here"
                yield Problem(e.position, "commits", text, RESTORE)
                return
            if e.id != event_id(before.id, int.from_bytes(before.id[14:], "big") + 1):
                text = f"the id {e.id.hex()} does not follow {before.id.hex()}, whose commit goes on here"
                yield Problem(e.position, "ids", text, RESTORE)
            if e.remaining != before.remaining - 1:
                text = f"{before.remaining - 1} more events of its commit should follow, and it says {e.remaining}"
                yield Problem(e.position, "commits", text, RESTORE)
                self._before = e._replace(remaining=before.remaining - 1)
        elif (before is not None or start) and e.id != command_of(e.id):
            text = f"a commit begins here, and the id {e.id.hex()} is that of a later event of one"
            yield Problem(e.position, "ids", text, RESTORE)

    def _version(self, e: StoredEvent) -> Iterator[Problem]:
        if e.stream == SLOTS_STREAM and e.type.endswith(SLOT_OPENED):
            self.came.add(e.slot)
        wrong = list(self._versions.see(e))
        if e.stream == SLOTS_STREAM or e.slot not in self.came:  # of those, only the store's imports tell
            yield from wrong

    def _place(self, e: StoredEvent) -> Iterator[Problem]:
        slot = slot_of(e.stream, self._identity.slots)
        if e.stream == SLOTS_STREAM:  # an event about a slot is of that slot
            slot = e.slot if 0 <= e.slot < self._identity.slots else slot
        if e.slot != slot:
            text = f"stream {e.stream!r} belongs to slot {slot} of {self._identity.slots}, and the event says {e.slot}"
            yield Problem(e.position, "slots", text, RESTORE)
        if e.incarnation != (right := self._identity.incarnation_at(e.position)):  # a restored log has earlier ones too
            text = f"the event is of incarnation {e.incarnation!r}, and the log of {right!r} there"
            yield Problem(e.position, "incarnation", text, f"It comes from another log. {RESTORE}")


class _Versions:
    """The law of versions, for events of which those of each stream come in order."""

    def __init__(self, *, begin_anywhere: bool = False) -> None:
        self.given = 0
        """Of the events, those that another library wrote."""
        self.tops: dict[str, int] = {}
        """The greatest version of each stream."""
        self._begin_anywhere = begin_anywhere
        self._scattered: dict[str, set[int]] = {}  # all versions of the streams that do not simply count up

    def see(self, e: StoredEvent) -> Iterator[Problem]:
        """What is wrong with the next one."""
        begun = e.version - 1 if self._begin_anywhere else 0
        top, given = self.tops.get(e.stream, begun), states.is_of_library(e)
        self.given += given
        seen = self._scattered.get(e.stream)
        if seen is None and given and e.version != top + 1:
            seen = self._scattered[e.stream] = set(range(1, top + 1))
        if given and seen is not None and e.version in seen:
            yield Problem(e.position, "versions", f"stream {e.stream!r} has version {e.version} twice", RESTORE)
        elif not given and e.version != top + 1:
            text = f"stream {e.stream!r} goes on with version {e.version}, where {top + 1} belongs"
            yield Problem(e.position, "versions", text, RESTORE)
        if seen is not None:
            seen.add(e.version)
        self.tops[e.stream] = max(top, e.version)


_READABLE = "If its class was renamed or has changed, give the service renamed= or upcasters=; else restore the store."
_KINDS = (int, str, int, int, str, int, bytes, int, str, bytes)


def _wrong_kind(e: StoredEvent) -> str:
    """Which column holds what it never can: SQLite takes anything anywhere."""
    for name, value, kind in zip(e._fields, e, _KINDS, strict=False):
        if type(value) is not kind:
            return f"{name} is {value!r}"[:200]
    return f"meta is {e.meta!r}"[:200] if e.meta is not None and type(e.meta) is not str else ""


async def check_store(store: Inspectable, read: Reader, on_progress: Progress = unheard) -> StoreReport:
    """Read the whole log of a store, as far as it goes now. Changes nothing; the service may run meanwhile.

    Ends early with the problem that is one too many to tell. Raises StoreUnavailable when the store is gone.
    """
    wrong = list(await _wrong_files(store))
    if (known := await _head(store)) is None:
        wrong.append("the database cannot tell where the log ends")
    report = StoreReport(store.identity.name, store.identity.incarnation, known or 0)
    report.problems += [Problem(0, "files", text, RESTORE) for text in wrong]
    head = known if known is not None else _FAR
    check = LogCheck(store.identity, read, await store.trimmed() if isinstance(store, Trimmed) else 0)
    found: Sequence[StoredEvent | Unreadable] = ()
    # A little further than the head was, but not after a log that grows as fast as it is read.
    while len(report.problems) < MOST_PROBLEMS and check.last < head + BATCH:
        found = await _scanned(store, check.last, head)
        if not found:
            report.problems += check.end(known or 0)
            break
        for each in found:
            report.problems += check.see(each)
        on_progress(check.last, max(known or 0, check.last))
        await asyncio.sleep(0)
    if (now := await _head(store)) is not None and check.last > now:
        text = f"the log's head is {now}, and there are events up to {check.last}: the next append would collide"
        report.problems.append(Problem(now + 1, "positions", text, RESTORE))
    if isinstance(store, SlotStore) and check.came:
        report.problems += await _of_slots_that_came(store, sorted(check.came))
    del report.problems[MOST_PROBLEMS:]
    report.checked, report.streams, report.given = check.checked, check.streams, check.given
    return report


async def _of_slots_that_came(store: SlotStore, slots: Sequence[int]) -> list[Problem]:
    """What is wrong with the versions of streams that have come with their slots: imports and own events together."""
    versions, place, problems = _Versions(), BEGINNING, list[Problem]()
    while found := await store.slot_events(slots, place, BATCH):
        place = found[-1][0]
        for _, event in found:
            own = event.incarnation == store.identity.incarnation_at(event.position)
            said = "" if own else f"imported from incarnation {event.incarnation}: "
            problems += [wrong._replace(text=said + wrong.text) for wrong in versions.see(event)]
    return problems


async def _wrong_files(store: Inspectable) -> Sequence[str]:
    try:
        return await store.self_check()
    except StoreUnavailable:
        raise
    except StoreError as e:
        return [f"the database cannot look through its own files: {_cause(e)}"]


async def _head(store: Inspectable) -> int | None:
    try:
        return await store.head()
    except StoreUnavailable:
        raise
    except StoreError:
        return None


async def _scanned(store: Inspectable, after: int, head: int) -> Sequence[StoredEvent | Unreadable]:
    """The next events; where the database cannot give them, those before, and then that one as unreadable."""
    try:
        return await store.scan(after, BATCH)
    except StoreUnavailable:
        await _head(store)  # gone altogether, or only this?
    except StoreError:
        pass
    try:
        return await store.scan(after, 1)
    except StoreError as e:
        return [Unreadable(after + 1, f"the database cannot read it: {_cause(e)}")] if after < head else []


def _cause(error: StoreError) -> str:
    """What the driver says: what to do is said by the problem."""
    return _ended(error.__cause__ or error)


def _ended(error: BaseException) -> str:
    return str(error).rstrip(". ")
