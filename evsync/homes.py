"""Where the streams of a service live: in one store, or each in the shard that its slot is open in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TypeAlias

from evsync.errors import AcrossShards, ConfigurationError, SlotMoved, StoreUnavailable
from evsync.ports import ReadsOpenSlots, SlotStore, Store
from evsync.records import Change, Commit, LogIdentity, Position, Snapshot, StoredEvent
from evsync.sharding.slots import slot_of
from evsync.sharding.truth import Held, truth
from evsync.stores.group_commit import GroupCommit

PATIENCE_S = 10.0
"""How long a slot that is closed, and open nowhere, is waited for: its mover opens it within milliseconds."""
LOOK_S = 0.003


class OneStore:
    """All streams, and their snapshots, in one store.

    Raises StoreUnavailable for a slot that is on another shard by now.
    """

    def __init__(self, store: Store, commits: GroupCommit) -> None:
        self._store, self._commits = store, commits
        self._reading = reading(store)
        self.slots = store.identity.slots

    async def commit(self, commit: Commit) -> Position:
        """Store the commit, all of it or none; the position of its last event. Raises as GroupCommit.commit."""
        try:
            return self._store.identity.at(await self._commits.commit(commit))
        except SlotMoved as e:
            raise StoreUnavailable(str(e)) from e

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """See EventStore.read_stream."""
        try:
            await _check_open_in(self._store, stream, slot_of(stream, self.slots))
        except SlotMoved as e:
            raise StoreUnavailable(str(e)) from e
        return await self._store.read_stream(stream, after_version=after_version, to_version=to_version)

    async def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See EventStore.read_changes."""
        slot = slot_of(stream, self.slots)
        try:
            async for changes in self._reading.read_open(
                stream, slot, after_version=after_version, to_version=to_version
            ):
                yield changes
        except SlotMoved as e:
            raise StoreUnavailable(str(e)) from e

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """See SnapshotStore.put_snapshot."""
        await self._store.put_snapshot(snapshot)

    async def snapshot(self, stream: str) -> Snapshot | None:
        """See SnapshotStore.snapshot."""
        return await self._store.snapshot(stream)

    async def head(self, stream: str) -> Position:
        """The end of the log that the stream's events are appended to."""
        return self._store.identity.at(await self._store.head())

    def end_of(self, event: StoredEvent) -> Position:
        """The position of the last event of the commit that the event belongs to."""
        return self._store.identity.at(event.position + event.remaining)


class ShardedStores:
    """Each stream in the shard that its slot is open in, found by what the stores say. Has what OneStore has.

    What is known of the slots may be old: the stores refuse what it leads to wrongly, and then it is read again.
    """

    def __init__(
        self, stores: Mapping[str, Store], commits: Mapping[str, GroupCommit], now: Mapping[int, Held]
    ) -> None:
        self.stores, self._commits = dict(stores), dict(commits)
        self._reading = {shard: reading(store) for shard, store in stores.items()}
        self._looking: asyncio.Future[dict[int, Held]] | None = None
        self._now: Mapping[int, Held] = {}
        self._know(now)
        self.slots = next(iter(stores.values())).identity.slots
        self._logs: dict[str, LogIdentity] = {}
        """By incarnation, those included that a log was restored from."""
        for log in (store.identity for store in stores.values()):
            self._logs |= dict.fromkeys([log.incarnation, *(a.incarnation for a in log.ancestry)], log)

    def shard_of(self, stream: str) -> str:
        """The shard of a stream, as far as this process knows."""
        return self._now[slot_of(stream, self.slots)].bound_for

    async def look(self) -> Mapping[int, Held]:
        """Ask all stores where the slots are; all who want to know at once ask together."""
        looking = self._looking
        if looking is None or looking.done():
            looking = self._looking = asyncio.ensure_future(truth(self.stores))
        self._know(await asyncio.shield(looking))
        return self._now

    def _know(self, now: Mapping[int, Held]) -> None:
        for held in now.values():
            if held.bound_for not in self.stores:
                raise StoreUnavailable(
                    f"slots were moved to shard {held.bound_for!r}, which this process does not know; nothing was "
                    f"stored. Add its store to the others ({', '.join(self.stores)}) and start the process again."
                )
        self._now = now

    async def commit(self, commit: Commit) -> Position:
        """See OneStore. Raises AcrossShards where the streams' slots are not all in one shard."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            shards = {a.stream: self._now[a.slot].bound_for for a in commit.appends}
            if len(set(shards.values())) > 1:
                raise AcrossShards(shards)
            (shard,) = set(shards.values())
            try:
                return self.stores[shard].identity.at(await self._commits[shard].commit(commit))
            except SlotMoved as e:
                await self._wait(e.slot, shard, deadline, e.stream)

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """See OneStore. The shard's word that the slot is open comes first: what is read then is all there was."""
        store = await self._owner(stream)
        return await store.read_stream(stream, after_version=after_version, to_version=to_version)

    async def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See OneStore. A slot that leaves meanwhile leaves its events where they are read."""
        slot, deadline = slot_of(stream, self.slots), time.monotonic() + PATIENCE_S
        while True:
            shard = self._now[slot].bound_for
            try:
                async for changes in self._reading[shard].read_open(
                    stream, slot, after_version=after_version, to_version=to_version
                ):
                    yield changes
                return
            except SlotMoved:
                await self._wait(slot, shard, deadline, stream)

    async def head(self, stream: str) -> Position:
        """See OneStore."""
        store = self.stores[self.shard_of(stream)]
        return store.identity.at(await store.head())

    def end_of(self, event: StoredEvent) -> Position:
        """See OneStore: in the log that the event was appended to, wherever its stream is now."""
        log = self._logs.get(event.incarnation)
        if log is None:
            raise ConfigurationError(
                f"event {event.position} of incarnation {event.incarnation!r} is of no shard that is open: name the "
                "stores of all shards that the service ever had"
            )
        return log.at(event.position + event.remaining)

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """See OneStore: beside the stream. One that a move leaves behind is of no use, and no harm."""
        await self.stores[self.shard_of(snapshot.stream)].put_snapshot(snapshot)

    async def snapshot(self, stream: str) -> Snapshot | None:
        """See OneStore."""
        return await self.stores[self.shard_of(stream)].snapshot(stream)

    async def _owner(self, stream: str) -> Store:
        slot = slot_of(stream, self.slots)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            shard = self._now[slot].bound_for
            try:
                await _check_open_in(self.stores[shard], stream, slot)
                return self.stores[shard]
            except SlotMoved:
                await self._wait(slot, shard, deadline, stream)

    async def _wait(self, slot: int, shard: str, deadline: float, stream: str) -> None:
        """Look where the slot is now; a little later if it is nowhere."""
        held = (await self.look())[slot]
        if held.is_open and held.shard != shard:
            return
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"slot {slot}, that of stream {stream!r}, is on its way from shard {held.shard!r} to "
                f"{held.bound_for!r}, and nobody finishes the move; nothing was stored. Run `evsync shards rebalance`: "
                "it finishes what others have begun."
            )
        await asyncio.sleep(LOOK_S)


Home: TypeAlias = OneStore | ShardedStores
"""Where a service commits and reads."""


class _AskedFirst:
    """Asks the store whether a slot is open, and then reads. Implements ReadsOpenSlots."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read_open(
        self, stream: str, slot: int, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See ReadsOpenSlots."""
        await _check_open_in(self._store, stream, slot)
        async for changes in self._store.read_changes(stream, after_version=after_version, to_version=to_version):
            yield changes


def reading(store: Store) -> ReadsOpenSlots:
    """The store, as one that reads where slots are open."""
    return store if isinstance(store, ReadsOpenSlots) else _AskedFirst(store)


async def _check_open_in(store: SlotStore, stream: str, slot: int) -> None:
    """Raise SlotMoved where the stream goes on in another shard's store: what is in this one is its past."""
    state = await store.slot_state(slot)
    if state is None or state.to is not None:
        raise SlotMoved(stream, slot, state.to if state is not None else None)


def one_number_of_slots(stores: Sequence[Store]) -> None:
    """Raise ConfigurationError where the stores were made with different numbers of slots."""
    numbers = {store.identity.shard: store.identity.slots for store in stores}
    if len(set(numbers.values())) > 1:
        raise ConfigurationError(
            "the shards' stores were made with different numbers of slots "
            f"({', '.join(f'{shard}: {n}' for shard, n in numbers.items())}): the number is chosen once for a service"
        )
