"""A shard that is restored beside others that live on: what they have of it that its archive has not.

Other shards hold events of the lost log as imports, beyond the end that is restored, and had its slots since. Both are
written behind the end, in the commit that says that the log was restored: the events, with their ids and versions, and
for each stay there that is over by now where the slot came from and went to (see `ownership`). So all that is said of a
slot is in some log again, and its histories agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from evsync.codec.values import pack
from evsync.control import FENCES_STREAM, OWN_STREAMS, SHARD_RESTORED, SLOT_CLOSED, SLOT_OPENED, SLOTS_STREAM
from evsync.errors import ArchiveIncomplete
from evsync.ports import Arrived, Place, Store, StoreRestore
from evsync.records import History, LogIdentity, SlotRows, SlotState, StoredEvent, event_id
from evsync.sharding.slots import slot_of
from evsync.stores.slot_events import SlotEvent, folded, is_of, says_closed, says_opened, slot_event

READ_EVENTS = 500
MOST_EVENTS = 65_000
"""That are brought back: they are one commit."""


NOTHING = History()


@runtime_checkable
class FencedStore(Store, Protocol):
    """A store of a shard that another one can be restored beside."""

    async def fence(self, restored: LogIdentity) -> None:
        """Take slots from a shard's log, from now on, only as it is restored: refuse what it has lost, or may have."""
        ...


class OwnLog:
    """Is told of a log's events in their order, and knows what it has of its slots."""

    def __init__(self) -> None:
        self.said: list[SlotEvent] = []
        self.fences = 0
        """The version of FENCES_STREAM."""
        self.stays: dict[tuple[int, int], History] = defaultdict(History)
        """By slot and epoch, of the events that it got there."""
        self._epochs: dict[int, int] = {}

    def see(self, events: Sequence[StoredEvent]) -> Mapping[str, list[Arrived]]:
        """See Follows. Others hold nothing more of them."""
        for event in events:
            if (said := slot_event(event)) is not None:
                self.said.append(said)
                self._epochs[said.slot] = said.epoch
            elif event.stream == FENCES_STREAM:
                self.fences = event.version
            elif not event.stream.startswith(OWN_STREAMS):
                key = event.slot, self._epochs.get(event.slot, 1)
                self.stays[key] = self.stays[key].with_ids((event.id,))
        return {}


class Told(NamedTuple):
    """What a log says of a slot, and which log that is."""

    shard: str
    said: SlotEvent


@dataclass(slots=True)
class _Stay:
    """A slot's time in the restored shard."""

    epoch: int
    own: History
    """What the archive has of the events that it got then."""
    came: Told | None
    """Its SlotClosed where it came from; None in epoch 1."""
    opened: bool
    """Whether the archive says that it came."""
    begin: History = NOTHING
    """The slot's history when it came."""
    left: Told | None = None
    """Its SlotOpened where it went to, if it was lost that it left."""
    end: History | None = None
    """The slot's history when it left."""
    found: list[StoredEvent] = field(default_factory=list)
    """What others have of it that the archive has not."""
    common: History = NOTHING
    """What others have of `own`."""

    @property
    def told_of(self) -> bool:
        """Whether the restored log has to say that the slot came."""
        return not self.opened and (self.left is not None or bool(self.found))


class Rescue:
    """Finds what the living shards have of a log that is restored up to a position. They are fenced before."""

    def __init__(self, restored: LogIdentity, position: int, own: OwnLog, stores: Mapping[str, FencedStore]) -> None:
        self._log, self._position, self._own, self._stores = restored, position, own, stores
        self._opened: dict[int, dict[int, Told]] = defaultdict(dict)
        self._closed: dict[int, dict[int, Told]] = defaultdict(dict)
        """By slot and the epoch that it was closed into."""
        self._states: dict[str, Mapping[int, SlotState]] = {}
        self._stays: dict[int, list[_Stay]] = {}
        self.found = 0
        """How many events are brought back."""
        self._first = True
        """Whether all slots were open in it in the beginning."""

    async def plan(self) -> None:
        """Look what the shards say of slots. Raises ArchiveIncomplete where that does not fit the archive."""
        await self._ask()
        for slot in range(self._log.slots):
            if stays := list(self._stays_of(slot)):
                self._stays[slot] = stays
        await self._ends()

    async def bring(self, into: StoreRestore) -> None:
        """Give the restored store its imports, and find what is to be brought back. Raises ArchiveIncomplete."""
        by_source: dict[str, list[int]] = defaultdict(list)
        arrived = {shard: await self._stores[shard].arrived(list(self._stays)) for shard in self._stores}
        for slot in self._stays:
            # They were asked one after the other: a slot that has moved meanwhile may be open in several.
            found = [(s.epoch, s.to is None, shard) for shard, said in self._states.items() if (s := said.get(slot))]
            _, is_open, source = max(found, default=(0, False, ""))
            longest = max(arrived, key=lambda shard: arrived[shard][slot].length)
            by_source[source if is_open else longest].append(slot)
        number = 1
        for source, slots in by_source.items():
            read = dict.fromkeys(slots, 0)
            async for page in _history(self._stores[source], slots):
                imports: list[Arrived] = []
                for _, event in page:
                    index, read[event.slot] = read[event.slot], read[event.slot] + 1
                    at = self._sort(event, index)
                    if at is not None:
                        imports.append(((at, number), event))
                        number += 1
                if imports:
                    await into.import_events(imports)
            for slot in slots:
                self._check(slot, source, read[slot])
        self.found = sum(len(stay.found) for stays in self._stays.values() for stay in stays)
        if self.found > MOST_EVENTS:
            raise self._refused(f"other shards have more than {MOST_EVENTS:,} events of it that its archive has not")

    def rows(self, restored: StoredEvent) -> list[StoredEvent]:
        """The commit that begins with the event which says that the log was restored."""
        found = sorted((item for slot in self._stays for item in self._items(slot)), key=lambda item: item[0])
        items = [self._fence(), *(row for _, row in found)]
        rows = [restored._replace(remaining=len(items))]
        version = len(self._own.said)
        for index, item in enumerate(items, 1):
            row = item
            if item.stream.startswith(OWN_STREAMS):
                version += item.stream == SLOTS_STREAM
                own = version if item.stream == SLOTS_STREAM else item.version
                row = item._replace(version=own, id=event_id(restored.id, index), time_us=restored.time_us)
            rows.append(
                row._replace(
                    position=restored.position + index,
                    remaining=len(items) - index,
                    incarnation=restored.incarnation,
                )
            )
        return rows

    def slots(self, rows: Sequence[StoredEvent]) -> SlotRows | None:
        """What the restored store says of its slots, behind these rows."""
        said = [*self._own.said, *(s for row in rows if (s := slot_event(row)) is not None)]
        found = folded(self._log.slots, said, owns_slots=self._first)
        if found is None:
            return None
        # What came with slots that are on their way here is there already.
        coming = {
            slot: stays[-1].begin
            for slot, stays in self._stays.items()
            if not stays[-1].opened and not stays[-1].told_of and not (len(stays) > 1 and stays[-2].left)
        }
        return SlotRows(found.states, {**found.arrived, **coming})

    def _fence(self) -> StoredEvent:
        """From the others, too, this one takes slots only as they are, or as what they become from now on."""
        data = pack({store.identity.name: store.identity.incarnation for store in self._stores.values()})
        row = self._control(SHARD_RESTORED, slot_of(FENCES_STREAM, self._log.slots), data)
        return row._replace(stream=FENCES_STREAM, version=self._own.fences + 1)

    # ---- what is said

    async def _ask(self) -> None:
        told = [(self._log.shard, said) for said in self._own.said]
        for shard, store in self._stores.items():
            states = self._states[shard] = await store.slot_states()
            said = [s for e in await store.read_stream(SLOTS_STREAM) if (s := slot_event(e)) is not None]
            told += [(shard, s) for s in said]
            if any(s.epoch == 1 for s in states.values()) or any(s.history and s.epoch == 2 for s in said):
                self._first = False
        for shard, each in told:
            of_kind = self._opened if each.history is None else self._closed
            if of_kind[each.slot].setdefault(each.epoch, Told(shard, each)).shard != shard:
                raise self._contradiction(each.slot, each.epoch)

    def _stays_of(self, slot: int) -> Iterator[_Stay]:
        """The slot's stays in the restored shard, in order."""
        shard, opened, closed = self._log.shard, self._opened[slot], self._closed[slot]
        epochs = {1} if self._first else set()
        for told_of, here, there in ((opened, 0, -1), (closed, -1, 0)):
            epochs |= {e + here for e, told in told_of.items() if told.shard == shard}
            epochs |= {e + there for e, told in told_of.items() if told.said.shard == shard}
        epochs |= {epoch for s, epoch in self._own.stays if s == slot}
        for epoch in sorted(epochs):
            came, since = closed.get(epoch), opened.get(epoch)
            stay = _Stay(epoch, self._own.stays.get((slot, epoch), NOTHING), came, epoch == 1 or since is not None)
            if epoch > 1 or not self._first:
                if came is None or came.said.history is None or came.shard == shard or came.said.shard != shard:
                    raise self._contradiction(slot, epoch)
                stay.begin = came.said.history
                log = self._stores[came.shard].identity
                if since and not (since.shard == shard and is_of(since.said, came.said, log)):
                    raise self._contradiction(slot, epoch)
            left, gone = closed.get(epoch + 1), opened.get(epoch + 1)
            if left is not None:
                if left.shard != shard or (gone is not None and gone.shard != left.said.shard):
                    raise self._contradiction(slot, epoch + 1)
                stay.end = left.said.history
            stay.left = gone if left is None else None
            yield stay

    async def _ends(self) -> None:
        """How much of slots came to the shards that they went to, where it was lost that they left."""
        gone: dict[str, dict[int, list[_Stay]]] = defaultdict(lambda: defaultdict(list))
        for slot, stays in self._stays.items():
            for stay in stays:
                if stay.left is not None:
                    stay.end = History()
                    gone[stay.left.shard][slot].append(stay)
        for shard, left in gone.items():
            async for page in _history(self._stores[shard], list(left)):
                for (at, _), event in page:
                    for stay in left[event.slot]:
                        if stay.left is not None and stay.end is not None and at < stay.left.said.position:
                            stay.end = stay.end.with_ids((event.id,))

    def _check_behind(self, closed: Told, seen: set[Told]) -> None:
        if closed in seen:
            return
        seen.add(closed)
        for told in (told for by_epoch in self._opened.values() for told in by_epoch.values()):
            if told.shard != closed.shard or told.said.position > closed.said.position:
                continue
            before = self._closed[told.said.slot].get(told.said.epoch)
            if before is not None and before.shard != self._log.shard:
                self._check_behind(before, seen)
            elif before is None:
                raise self._refused(
                    f"slots have left it for shard {told.shard!r} and others have come back since, and its archive "
                    "knows of neither"
                )

    # ---- what others have

    def _sort(self, event: StoredEvent, index: int) -> int | None:
        """Where an event of a slot's history, the one with this index, is an import; None if it is none."""
        before: _Stay | None = None
        for stay in self._stays[event.slot]:
            if index < stay.begin.length:
                if before is not None and before.left is not None:
                    return None  # behind what is brought back: left to the mover
                opened = self._opened[event.slot].get(stay.epoch)
                return opened.said.before if opened is not None else self._position
            if stay.end is None or index < stay.end.length:
                if index >= stay.begin.length + stay.own.length:
                    stay.found.append(event)
                else:
                    stay.common = stay.common.with_ids((event.id,))
                return None
            before = stay
        return None

    def _check(self, slot: int, source: str, length: int) -> None:
        for stay in self._stays[slot]:
            least = stay.end.length if stay.left is not None and stay.end is not None else stay.begin.length
            if length < least or (stay.common.length == stay.own.length and stay.common != stay.own):
                raise self._refused(f"what its archive has of slot {slot} is not what shard {source!r} holds of it")
            if stay.told_of and stay.came is not None:
                self._check_behind(stay.came, set())

    def _items(self, slot: int) -> Iterator[tuple[int, StoredEvent]]:
        """The rows of a slot, each with about where it was."""
        key = 0
        for stay in self._stays[slot]:
            if stay.told_of and stay.came is not None:
                key = max(key, stay.found[0].position if stay.found else 0)
                log = self._stores[stay.came.shard].identity
                at = stay.came.said.position
                said = says_opened(stay.epoch, log.name, log.incarnation_at(at), at, log.ancestry)
                yield key, self._control(SLOT_OPENED, slot, said)
            for event in stay.found:
                key = max(key, event.position)
                yield key, event
            if stay.left is not None and stay.end is not None:
                lost = stay.left.said
                key = max(key, lost.closed_at)
                said = says_closed(stay.epoch + 1, stay.left.shard, stay.end, (lost.closed_at, lost.incarnation))
                yield key, self._control(SLOT_CLOSED, slot, said)

    def _control(self, type: str, slot: int, data: bytes) -> StoredEvent:
        return StoredEvent(0, SLOTS_STREAM, 0, slot, f"{self._log.service}.{type}", 0, b"", 0, "", data, None)

    def _contradiction(self, slot: int, epoch: int) -> ArchiveIncomplete:
        return self._refused(f"what its archive says of slot {slot} in epoch {epoch} is not what the other shards say")

    def _refused(self, why: str) -> ArchiveIncomplete:
        return ArchiveIncomplete(
            f"log {self._log.name} cannot be restored beside the other shards, which live on: {why}. Nothing was "
            "restored. Archive them (`evsync backup run`), and restore all shards together"
        )


async def _history(store: FencedStore, slots: Sequence[int]) -> AsyncIterator[Sequence[Arrived]]:
    place: Place = (0, 0)
    while page := await store.slot_events(slots, place, READ_EVENTS):
        yield page
        place = page[-1][0]
