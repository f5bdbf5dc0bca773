"""An event store in memory: for tests, and the shortest statement of what a store does."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import AsyncIterator, Mapping, Sequence
from operator import attrgetter, itemgetter

from evsync.control import FENCES_STREAM, OWN_STREAMS, SLOTS_STREAM
from evsync.errors import Conflict, StoreUnavailable
from evsync.ports import Arrived, Capabilities, Place, Share, SlotSize, Stretch
from evsync.records import Change, Checkpoint, Commit, History, LogIdentity, SlotState, Snapshot, StoredEvent, change_of
from evsync.stores.plan import CheckpointKey, doubtful, keys_of, plan, streams_of
from evsync.stores.slot_events import unmoved
from evsync.stores.slot_steps import Decide, Fence, Found, SlotChange, Steps
from evsync.stores.tail import Tail

_version = attrgetter("version")


class MemoryStore(Steps):
    """An EventStore and EventLog that keeps everything in this process, for as long as the object lives.

    Keeps every law of `evsync.ports` but durability, those of SlotStore included. Belongs to one event loop at a time.
    """

    capabilities = Capabilities(durable=False, several_processes=False, given_versions=True)

    def __init__(self, identity: LogIdentity, *, owns_slots: bool = True) -> None:
        """An empty store; `owns_slots`: whether all slots are open in it, as in the first shard of a service."""
        self.identity = identity
        self._slots = unmoved(identity.slots) if owns_slots else {}
        self._moves = 0 if owns_slots else 1
        self._arrived: dict[int, History] = {}
        self._imports: list[Arrived] = []
        self._log: list[StoredEvent] = []
        self._streams: dict[str, list[StoredEvent]] = {}
        self._checkpoints: dict[CheckpointKey, Checkpoint] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._tail = Tail()
        self._closed = False

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """Append each commit, all of it or none; see `EventStore.append`."""
        self._check_open()
        versions = {s: events[-1].version for s in streams_of(commits) if (events := self._streams.get(s))}
        positions = {k: c.position for k in keys_of(commits) if (c := self._checkpoints.get(k)) is not None}
        taken = {place for place in doubtful(commits, versions) if self._holds(*place)}
        planned = plan(
            self.identity, len(self._log), versions, positions, commits, taken, self._slots if self._moves else None
        )
        self._add(planned.rows)
        self._checkpoints.update(planned.checkpoints)
        self._tail.moved(planned.head)
        return planned.outcomes

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """The events of a stream with `after_version < version <= to_version`, in order."""
        self._check_open()
        events = self._streams.get(stream, [])
        end = len(events) if to_version is None else bisect_right(events, to_version, key=_version)
        return events[bisect_right(events, after_version, key=_version) : end]

    async def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """The same events in slices, as little of them as a fold needs."""
        if events := await self.read_stream(stream, after_version=after_version, to_version=to_version):
            yield list(map(change_of, events))

    async def checkpoints(self, follower: str) -> list[Checkpoint]:
        """The checkpoints that commits have stored under this name."""
        self._check_open()
        return [c for (name, _, _), c in self._checkpoints.items() if name == follower]

    async def head(self) -> int:
        """The position of the last event: 0 for an empty log."""
        self._check_open()
        return len(self._log)

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """The events after position `after`, about `limit` of them, whole commits only; [] at the end."""
        self._check_open()
        events = self._log[max(after, 0) : max(after, 0) + max(limit, 1)]
        if events and (remaining := events[-1].remaining):
            end = events[-1].position
            events += self._log[end : end + remaining]
        return events

    async def read_share(self, after: int, limit: int, share: Share) -> Stretch:
        """See ReadsShares."""
        return Stretch(await self.read(after, limit)).cut_to(share)

    async def wait(self, after: int, timeout_s: float) -> int:
        """The head, as soon as it is beyond `after`, or when the time has run out."""
        self._check_open()
        await self._tail.beyond(after, timeout_s)
        return self._tail.head

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it in place of an older one, or one of another shape."""
        self._check_open()
        kept = self._snapshots.get(snapshot.stream)
        if kept is None or kept.shape != snapshot.shape or kept.version < snapshot.version:
            self._snapshots[snapshot.stream] = snapshot

    async def snapshot(self, stream: str) -> Snapshot | None:
        """The snapshot of a stream, if one is kept."""
        self._check_open()
        return self._snapshots.get(stream)

    async def close(self) -> None:
        """Refuse everything from now on, and let go of those who wait."""
        self._closed = True
        self._tail.failed(self._closed_error())

    # ---- SlotStore

    async def slot_states(self) -> Mapping[int, SlotState]:
        """What the store says of each slot that is, or was, open in it."""
        self._check_open()
        return dict(self._slots)

    async def slot_state(self, slot: int) -> SlotState | None:
        """What the store says of one slot now."""
        self._check_open()
        return self._slots.get(slot)

    async def arrived(self, slots: Sequence[int]) -> Mapping[int, History]:
        """What has arrived of the histories of slots that are not open here."""
        self._check_open()
        return {slot: self._arrived.get(slot, History()) for slot in slots}

    async def slot_events(self, slots: Sequence[int], after: tuple[int, int], limit: int) -> list[Arrived]:
        """The next events of these slots, own and imported, in the order in which they came."""
        self._check_open()
        wanted = set(slots)
        own = [((e.position, 0), e) for e in self._log if not e.stream.startswith(OWN_STREAMS)]
        found = [arrived for arrived in own + self._imports if arrived[1].slot in wanted and arrived[0] > after]
        return sorted(found, key=itemgetter(0))[:limit]

    async def slot_size(self) -> SlotSize:
        """How much there is in the store."""
        self._check_open()
        own = [e for e in self._log if not e.stream.startswith(OWN_STREAMS)]
        here = {slot for slot, state in self._slots.items() if state.to is None}
        streams = {e.stream for e in [*own, *(e for _, e in self._imports)] if e.slot in here}
        return SlotSize(len(own), sum(len(e.data) for e in own), len(streams))

    async def _step(
        self, slots: Sequence[int], decide: Decide, *, seen: int | None = None, logged: bool = True
    ) -> SlotChange | None:
        head, wanted, fences = len(self._log), set(slots), self._streams.get(FENCES_STREAM, [])
        change = decide(
            Found(
                moves=self._moves,
                states=self._slots,
                arrived=await self.arrived(slots),
                head=head,
                version=len(self._streams.get(SLOTS_STREAM, [])),
                later=[] if seen is None else [
                    (e.slot, e.id)
                    for e in self._log[seen:]
                    if e.slot in wanted and not e.stream.startswith(OWN_STREAMS)
                ],
                fence=next((Fence(e.version, e.incarnation, e.data) for e in fences[-1:]), None),
            )
        )  # fmt: skip
        if change is None:
            return None
        self._add(change.rows)
        for event in change.imports:
            self._import((head, len(self._imports) + 1), event)
        self._arrived |= change.arrived
        self._slots |= change.states
        self._moves += bool(change.states)
        for slot in change.opened:
            self._arrived.pop(slot, None)
        self._tail.moved(len(self._log))
        return change

    def _add(self, rows: Sequence[StoredEvent]) -> None:
        self._log += rows
        for row in rows:
            insort(self._streams.setdefault(row.stream, []), row, key=_version)

    def _import(self, place: Place, event: StoredEvent) -> None:
        self._imports.append((place, event))
        insort(self._streams.setdefault(event.stream, []), event, key=_version)

    def _holds(self, stream: str, version: int) -> bool:
        events = self._streams.get(stream, [])
        place = bisect_right(events, version, key=_version)
        return place > 0 and events[place - 1].version == version

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> StoreUnavailable:
        return StoreUnavailable(f"the memory store of {self.identity.name!r} is closed; nothing was stored")
