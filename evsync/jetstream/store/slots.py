"""Slots of a JetStream store: which are open in it, what came with them, and the steps by which they move.

What the store says of its slots are events of its log, and the last one of a slot counts. A server cannot refuse an
append because of them at a price that one would pay (docs/adr/0020), so a slot that is open here stays open: it leaves
only while the log holds nothing but such events, its beginning. Whoever knows an event of another kind knows all slots
that ever left, and appends as freely as ever. Until then an append expects that the log ends where it was read to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from evsync.codec.values import unpack
from evsync.control import OWN_STREAMS, SLOT_CLOSED, SLOTS_STREAM
from evsync.errors import ConfigurationError
from evsync.jetstream.client.refusals import Refused
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.store.imports import ImportStream
from evsync.jetstream.store.reads import Seen, StreamReads, Top
from evsync.jetstream.store.sends import Sender, drafts_of, stored
from evsync.ports import Arrived, Place, SlotSize
from evsync.records import History, LogIdentity, Opening, SlotState, StoredEvent
from evsync.sharding.slots import slot_of
from evsync.stores.slot_events import unmoved
from evsync.stores.slot_steps import Found, close, importing, open_

_ANSWER_S = 2.0
_PAGE = 1_000


class Slots:
    """What a store's log says of its slots, as far as this process has read it; and streams with what was imported."""

    def __init__(
        self,
        identity: LogIdentity,
        form: MessageFormat,
        reads: StreamReads,
        sender: Sender,
        imports: ImportStream,
        *,
        owns_slots: bool,
    ) -> None:
        self._identity, self._form = identity, form
        self._reads, self._sender, self.imports = reads, sender, imports
        self._states = unmoved(identity.slots) if owns_slots else {}
        self._none_moved = owns_slots
        self._came: dict[int, bool | None] = {}  # slots that were moved here: whether with events, if that is known
        self._end = Top(0, 0)  # of the events about slots
        self._beginning = 0  # the log is read up to here, and has nothing but such events
        self._settled = False  # whether the log is known to have another event
        self._reading = asyncio.Lock()

    # ---- what is so

    @property
    def states(self) -> Mapping[int, SlotState] | None:
        """The states that are known; None where no slot has ever moved."""
        return None if self._none_moved else self._states

    async def all_states(self) -> Mapping[int, SlotState]:
        """The states now. Raises BrokerError, as all of these."""
        await self._refresh()
        return dict(self._states)

    async def state(self, slot: int) -> SlotState | None:
        """The state of one slot now. Of an open one no question is asked, once it can never leave."""
        await self.settle()
        if not self._settled or not self._is_open(slot):
            await self._refresh()
        return self._states.get(slot)

    async def fence(self, slots: Iterable[int]) -> int | None:
        """What an append to these slots must expect as the log's last position; None if nothing.

        `states` are then the right ones for it.
        """
        await self.settle()
        if not all(map(self._is_open, slots)):
            await self._refresh()
        return None if self._settled else self._beginning

    def appended(self) -> None:
        """An event of another kind was stored where `fence` had said."""
        self._settled = True

    async def settle(self) -> None:
        """Read the log's beginning, up to the first event of another kind: slots leave in no later place."""
        if self._settled:
            return
        async with self._reading:
            limit = 1 if self._beginning == 0 else _PAGE
            while not self._settled:
                events, _ = await self._reads.log(self._beginning, limit)
                for event in events:
                    self._settled = self._settled or event.stream != SLOTS_STREAM
                    if not self._settled:
                        self._learn(event)
                        self._beginning = event.position
                if not events:
                    return
                limit = _PAGE

    async def _refresh(self) -> None:
        await self.settle()
        async with self._reading:
            found = await self._reads.last(SLOTS_STREAM)
            if found is None or found[1].version <= self._end.version:
                return
            last, top = found
            seen = Seen(self._reads.subject_of(last), top.sequence)
            for event in await self._reads.stream(SLOTS_STREAM, self._end.version, None, seen):
                self._learn(event)

    def _learn(self, event: StoredEvent) -> None:
        if event.version != self._end.version + 1:
            return  # known
        said, slot = unpack(event.data), event.slot
        if event.type.endswith(SLOT_CLOSED):
            history = History(said["length"], said["digest"])
            self._states[slot] = SlotState(said["epoch"], said["to"], event.position, history)
        else:
            self._states[slot] = SlotState(said["epoch"])
            self._came[slot] = None
        self._end, self._none_moved = Top(event.version, event.position), False

    def _is_open(self, slot: int) -> bool:
        state = self._states.get(slot)
        return state is not None and state.to is None

    # ---- streams, imports included

    async def imported(self, slot: int) -> bool:
        """Whether there may be imports of the slot's streams."""
        await self.settle()
        if not self._is_open(slot):
            await self._refresh()
        if slot not in self._came:
            return False
        known = self._came[slot]
        if known is None:
            known = self._came[slot] = (await self.imports.arrived(slot)).length > 0
        return known

    async def last(self, stream: str) -> tuple[StoredEvent, Top] | None:
        """The last event of an aggregate's stream, and where the stream ends: at sequence 0 for an import."""
        found = await self._reads.last(stream)
        if found is None and await self._has_imports(stream):
            copy = await self.imports.reads.last(stream)
            return (copy[0], Top(copy[1].version, 0)) if copy is not None else None
        return found

    async def at(self, stream: str, version: int) -> StoredEvent | None:
        """The event of one version of an aggregate's stream."""
        found = await self._reads.at(stream, version)
        if found is None and await self._has_imports(stream):
            return await self.imports.reads.at(stream, version)
        return found

    async def imports_of(self, stream: str, after: int, to: int | None) -> list[StoredEvent]:
        """The imports of an aggregate's stream with after < version <= to, in order."""
        if not await self._has_imports(stream):
            return []
        return await self.imports.reads.stream(stream, after, to, None)

    async def _has_imports(self, stream: str) -> bool:
        return await self.imported(slot_of(stream, self._identity.slots))

    async def arrivals(self, slots: Sequence[int]) -> dict[int, History]:
        """See SlotStore.arrived: only imports, because what is appended here never leaves."""
        return dict(zip(slots, await asyncio.gather(*map(self.imports.arrived, slots)), strict=True))

    async def events(self, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
        """See SlotStore.slot_events: the imports first, which all came before a slot's own events."""
        wanted, found = set(slots), list[Arrived]()
        came, number = after
        if came == 0 and any(h.length for h in (await self.arrivals(slots)).values()):
            while len(found) < limit and (copies := await self.imports.reads.some(number, _PAGE)):
                found += [((0, n), e) for n, e in enumerate(copies, number + 1) if e.slot in wanted]
                number += len(copies)
        while len(found) < limit and (events := (await self._reads.log(came, _PAGE))[0]):
            found += [((e.position, 0), e) for e in events if e.slot in wanted and not e.stream.startswith(OWN_STREAMS)]
            came = events[-1].position
        return found[:limit]

    async def size(self) -> SlotSize:
        """See SlotStore.slot_size."""
        await self._refresh()
        count = size_bytes = position = 0
        streams: set[str] = set()
        while events := (await self._reads.log(position, _PAGE))[0]:
            own = [e for e in events if not e.stream.startswith(OWN_STREAMS)]
            count, size_bytes = count + len(own), size_bytes + sum(len(e.data) for e in own)
            streams.update(e.stream for e in own if self._is_open(e.slot))
            position = events[-1].position
        if any([await self.imported(slot) for slot in self._came]):
            number = 0
            while copies := await self.imports.reads.some(number, _PAGE):
                streams.update(e.stream for e in copies if self._is_open(e.slot))
                number += len(copies)
        return SlotSize(count, size_bytes, len(streams))

    # ---- moving

    async def check_leaving(self) -> None:
        """Raise ConfigurationError if no slot can leave any more."""
        await self.settle()
        if self._settled:
            raise ConfigurationError(
                f"shard {self._identity.shard!r} is a JetStream stream that holds events, and slots cannot be moved "
                "away from one: they can only be moved to it. Nothing was moved. Name other slots or another shard, "
                "or a router that leaves it what it has."
            )

    async def bring(self, events: Sequence[StoredEvent], expected: Mapping[int, History]) -> bool:
        """See SlotStore.import_events. What is stored is what `imports` finds to be expected."""
        found = await self._found(list(expected))
        return importing(self._identity, events, expected, None, found) is not None and await self.imports.bring(
            events, expected
        )

    async def close(
        self, closing: Mapping[int, int], to: str, histories: Mapping[int, History], *, again: bool
    ) -> Mapping[int, SlotState] | None:
        """See SlotStore.close_slots. `again`: an earlier try may have been stored."""
        found = await self._found(list(closing))
        known = {slot: found.states[slot] for slot in closing if slot in found.states}
        if again and {slot: (s.epoch, s.to) for slot, s in known.items()} == {s: (e, to) for s, e in closing.items()}:
            return known
        change = close(self._identity, closing, to, histories, found)
        if change is None:
            return None
        await self.check_leaving()
        return {slot: self._states[slot] for slot in closing} if await self._say(change.rows) else None

    async def open(self, opening: Mapping[int, Opening], source: LogIdentity | None, *, again: bool) -> bool:
        """See SlotStore.open_slots. `again`: an earlier try may have been stored."""
        found = await self._found(list(opening))
        if again and all(found.states.get(slot) == SlotState(o.epoch) for slot, o in opening.items()):
            return True
        change = open_(self._identity, opening, source, found)
        return change is not None and await self._say(change.rows)

    async def _found(self, slots: Sequence[int]) -> Found:
        await self._refresh()
        return Found(
            moves=0 if self._none_moved else 1,
            states=self._states,
            arrived=await self.arrivals(slots),
            head=self._beginning,
            version=self._end.version,
        )

    async def _say(self, rows: Sequence[StoredEvent]) -> bool:
        """Append events about slots, in one commit. False, with nothing stored, if the log has gone on.

        Raises BrokerUnavailable where it is not known, or may go better soon.
        """
        behind = None if self._settled else self._beginning
        drafts = drafts_of(self._form, rows, {SLOTS_STREAM: self._end})
        answer = await self._sender.batch(drafts, _ANSWER_S, behind=behind)
        if isinstance(answer, Refused) and answer.is_final:
            return False
        last = stored(answer, f"events of slots in the log of {self._identity.name}")
        for position, row in enumerate(rows, last - len(rows) + 1):
            self._learn(row._replace(position=position))
        if behind is not None:
            self._beginning = max(self._beginning, last)
        return True
