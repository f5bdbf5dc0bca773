"""The memory store keeps the laws."""

from __future__ import annotations

from evsync.ports import Store
from evsync.records import LogIdentity, new_incarnation
from evsync.stores.memory import MemoryStore
from evsync.testing.contracts import EventLogContract, EventStoreContract, SlotStoreContract, SnapshotStoreContract


class TestMemoryStore(EventStoreContract, EventLogContract, SnapshotStoreContract, SlotStoreContract):
    async def new_store(self) -> Store:
        return MemoryStore(LogIdentity("users", "main", new_incarnation()))

    async def new_shard(self, shard: str, *, owns_slots: bool) -> Store:
        return MemoryStore(LogIdentity("users", shard, new_incarnation()), owns_slots=owns_slots)
