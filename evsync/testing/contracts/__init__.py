"""The suites that every adapter of a port passes, as classes to inherit. Needs pytest, anyio and hypothesis.

    class TestMyStore(EventStoreContract, EventLogContract, SnapshotStoreContract):
        async def new_store(self) -> Store: ...
        async def reopen(self, store: Store) -> Store: ...   # if it declares durable
        def url_of(self, store: Store) -> str: ...           # if it declares several_processes
        async def new_shard(self, shard: str, *, owns_slots: bool) -> Store: ...   # for SlotStoreContract

What an adapter cannot do it declares in its `Capabilities`; the tests that this rules out are reported as skipped, with
the declaration as the reason.
"""

from evsync.testing.contracts.backup_target import BackupTargetContract
from evsync.testing.contracts.case import StoreCase
from evsync.testing.contracts.event_log import EventLogContract
from evsync.testing.contracts.event_store import EventStoreContract
from evsync.testing.contracts.lost_reply import LostReply
from evsync.testing.contracts.slot_store import SlotStoreContract
from evsync.testing.contracts.snapshot_store import SnapshotStoreContract
from evsync.testing.contracts.store_restore import StoreRestoreContract

__all__ = [
    "BackupTargetContract",
    "EventLogContract",
    "EventStoreContract",
    "LostReply",
    "SlotStoreContract",
    "SnapshotStoreContract",
    "StoreCase",
    "StoreRestoreContract",
]
