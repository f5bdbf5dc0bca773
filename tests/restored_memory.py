"""A restore into memory: for tests that restore hundreds of logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

from evsync.ports import Arrived
from evsync.records import Checkpoint, LogIdentity, SlotRows, StoredEvent
from evsync.stores.memory import MemoryStore
from evsync.stores.plan import check_follows


class MemoryRestore:
    """Fills a MemoryStore from a backup. Implements StoreRestore."""

    def __init__(self) -> None:
        self.store: MemoryStore | None = None
        """The store, once it is complete."""
        self._events: list[StoredEvent] = []
        self._imports: list[Arrived] = []

    async def load(self, events: Sequence[StoredEvent]) -> None:
        check_follows(len(self._events), events)
        self._events += events

    async def import_events(self, arrived: Sequence[Arrived]) -> None:
        self._imports += arrived

    async def complete(
        self, identity: LogIdentity, checkpoints: Mapping[str, Sequence[Checkpoint]], slots: SlotRows | None = None
    ) -> None:
        self.store = RestoredMemoryStore(identity, self._events, self._imports, checkpoints, slots)

    async def close(self) -> None:
        self._events, self._imports = [], []


class RestoredMemoryStore(MemoryStore):
    """A store with a log as it was somewhere else."""

    def __init__(
        self,
        identity: LogIdentity,
        events: Sequence[StoredEvent],
        imports: Sequence[Arrived] = (),
        checkpoints: Mapping[str, Sequence[Checkpoint]] = {},
        slots: SlotRows | None = None,
    ) -> None:
        super().__init__(identity)
        self._add(events)
        for place, event in sorted(imports, key=itemgetter(0)):
            self._import(place, event)
        if slots is not None:
            self._moves, self._slots, self._arrived = 1, dict(slots.states), dict(slots.arrived)
        self._checkpoints = {(name, c.log, c.group): c for name, kept in checkpoints.items() for c in kept}
