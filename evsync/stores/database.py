"""What a store in a database is, whichever database that is: how its log is read and waited for.

An adapter has the statements of its dialect, and says how rows are fetched and how it hears of what others append.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import starmap
from typing import Any, ClassVar, NamedTuple

from evsync.control import OWN_STREAMS
from evsync.errors import StoreUnavailable
from evsync.inspection import StoreFacts, Unreadable
from evsync.ports import Arrived, Place, Share, SlotSize, Stretch
from evsync.records import Change, Checkpoint, LogIdentity, SlotState, Snapshot, StoredEvent
from evsync.stores.checkpoint_rows import from_row
from evsync.stores.slot_events import unmoved
from evsync.stores.slot_rows import states_of
from evsync.stores.slot_steps import Steps
from evsync.stores.tail import Tail

OWN_RANGE = (OWN_STREAMS, OWN_STREAMS[:-1] + chr(ord(OWN_STREAMS[-1]) + 1))
"""Between which the ids of evsync's own streams are, the second excluded, where texts are ordered by their bytes."""


class Reads(NamedTuple):
    """The statements that a DatabaseStore reads by, with the names of their parameters in order."""

    head: str
    checkpoints: str
    """follower; as `from_row` takes them"""
    snapshot: str
    """stream; as the fields of Snapshot"""
    moves: str
    """How often the states of slots have changed; 0: all slots are open, as in a first shard."""
    states: str
    """As `states_of` takes them."""
    size: str
    """The service's own events: how many, and the bytes of their data."""
    streams: str
    """Slots, and how many streams there are of each, imports included."""
    facts: str
    """Version of the tables, head, number of events, of streams, of snapshots."""
    all_checkpoints: str
    """follower before the rest, of all followers"""
    trimmed: str
    goes_on: str
    """stream, version; a row if the stream has events behind that version"""
    old_streams: str
    """after, position, limit; see Trimmed.old_streams"""


class DatabaseStore(Steps):
    """Implements what of EventStore, EventLog, ReadsShares and SlotStore is the same over any database."""

    reads: ClassVar[Reads]
    kind: ClassVar[str]
    """For people."""

    def __init__(self, identity: LogIdentity, where: str, moves: int) -> None:
        """`where` says for people where the store is; `moves` are those at the moment."""
        self.identity = identity
        self._where = where
        self._tail = Tail(watch=self._watch)
        self._closed = False
        self._known_slots: tuple[int, Mapping[int, SlotState]] = (moves, {})
        """As of which move, and the states then ({}: not read yet)."""

    async def _fetch(self, text: str, parameters: Any = ()) -> list[Any]:
        """All rows of a statement."""
        raise NotImplementedError

    async def _log(self, after: int, limit: int) -> list[StoredEvent]:
        """Up to `limit` events behind a position, whatever is missing between them."""
        raise NotImplementedError

    async def _of_share(self, after: int, limit: int, share: Share) -> Sequence[StoredEvent]:
        """The events of the share behind a position, up to the end of the commit `limit` positions on, or of the last
        one before an event of evsync's own; the event at that end too."""
        raise NotImplementedError

    async def _others(self, after: int, end: int, share: Share) -> int:
        """How many events between two positions are not of the share, neither place counted."""
        raise NotImplementedError

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """See EventStore."""
        raise NotImplementedError

    def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See EventStore."""
        raise NotImplementedError

    async def slot_events(self, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
        """See SlotStore."""
        raise NotImplementedError

    async def _size_bytes(self) -> int:
        """What the store takes, indexes included."""
        raise NotImplementedError

    async def _watch(self) -> None:
        """Tell the tail what others append, while anybody waits for it."""
        raise NotImplementedError

    # ---- EventStore

    async def checkpoints(self, follower: str) -> list[Checkpoint]:
        """The checkpoints that commits have stored under this name, by log and group."""
        return list(starmap(from_row, await self._fetch(self.reads.checkpoints, (follower,))))

    async def snapshot(self, stream: str) -> Snapshot | None:
        """The snapshot of a stream, if one is kept."""
        rows = await self._fetch(self.reads.snapshot, (stream,))
        return Snapshot(*rows[0]) if rows else None

    # ---- EventLog

    async def head(self) -> int:
        """The position of the last event: 0 for an empty log."""
        return await self._number(self.reads.head)

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """The events at positions after + 1, after + 2, …, about `limit` of them, whole commits only; [] at the end."""
        events = await self._log(after, max(limit, 1))
        if events and (remaining := events[-1].remaining):
            events += await self._log(events[-1].position, remaining)
        return events

    async def read_share(self, after: int, limit: int, share: Share) -> Stretch:
        """See ReadsShares: one query for the events, and one that counts the others."""
        events = await self._of_share(after, max(limit, 1), share)
        if not events or events[-1].remaining:  # the end of that commit was trimmed
            return Stretch(())
        # Counted afterwards, and by what they are rather than as the rest: an event that a trim took away before it
        # was fetched, or that neither query has, makes the sum too small.
        end = events[-1].position
        others = await self._others(after, end, share)
        return Stretch(events, others, share) if len(events) + others == end - after else Stretch(())

    async def wait(self, after: int, timeout_s: float) -> int:
        """The head, as soon as it is beyond `after`, or when the time has run out.

        Woken at once by appends of this store, and by the watch for those of others, which goes on while anybody waits.
        """
        self._check_open()
        await self._tail.beyond(after, timeout_s)
        return self._tail.head if self._tail.head > after else await self.head()

    # ---- Inspectable

    async def facts(self) -> StoreFacts:
        """How much it holds."""
        ((schema, head, events, streams, snapshots),) = await self._fetch(self.reads.facts)
        return StoreFacts(
            kind=self.kind,
            where=self._where,
            schema=schema,
            head=head,
            events=events,
            streams=streams,
            size_bytes=await self._size_bytes(),
            snapshots=snapshots,
            checkpoints=[(name, from_row(*row)) for name, *row in await self._fetch(self.reads.all_checkpoints)],
        )

    async def scan(self, after: int, limit: int) -> list[StoredEvent | Unreadable]:
        """What is stored at up to `limit` positions after `after`, gaps and cut commits included."""
        return [*await self._log(after, limit)]

    # ---- SlotStore

    async def slot_states(self) -> Mapping[int, SlotState]:
        """What the store says of each slot that is, or was, open in it."""
        moves = await self._number(self.reads.moves)
        # Read after `moves`: what is newer than that is read once more by whoever sees `moves` rise.
        return self._known(moves) or self._learned(moves, await self._fetch(self.reads.states))

    async def slot_state(self, slot: int) -> SlotState | None:
        """What the store says of one slot now."""
        return (await self.slot_states()).get(slot)

    async def slot_size(self) -> SlotSize:
        """How much there is in the store."""
        here = {slot for slot, state in (await self.slot_states()).items() if state.to is None}
        ((events, size_bytes),) = await self._fetch(self.reads.size)
        streams = await self._fetch(self.reads.streams)
        return SlotSize(events, size_bytes, sum(count for slot, count in streams if slot in here))

    @property
    def _moved(self) -> bool:
        """Whether a slot has moved from or to this store, as far as is known: then there may be imports."""
        return self._known_slots[0] > 0

    def _known(self, moves: int) -> Mapping[int, SlotState] | None:
        """The states as of a move, if they were read then."""
        known, states = self._known_slots
        return states if states and known == moves else None

    def _learned(self, moves: int, rows: Iterable[Sequence[Any]]) -> Mapping[int, SlotState]:
        """The states as of a move, remembered."""
        states = states_of(rows) if moves else unmoved(self.identity.slots)
        self._known_slots = moves, states
        return states

    async def _number(self, text: str) -> int:
        ((number,),) = await self._fetch(text)
        return int(number)

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store {self._where} is closed; nothing was stored")
