"""An event store in memory: for tests, and the shortest statement of what a store does."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import AsyncIterator, Mapping, Sequence
from operator import attrgetter

from evsync.errors import Conflict, StoreUnavailable
from evsync.ports import Capabilities
from evsync.records import Change, Checkpoint, Commit, LogIdentity, Snapshot, StoredEvent, change_of
from evsync.stores.plan import CheckpointKey, check_follows, doubtful, keys_of, plan, streams_of
from evsync.stores.tail import Tail

_version = attrgetter("version")


class MemoryStore:
    """An EventStore and EventLog that keeps everything in this process, for as long as the object lives.

    Keeps every law of `evsync.ports` but durability. Belongs to one event loop at a time.
    """

    capabilities = Capabilities(durable=False, several_processes=False, given_versions=True)

    def __init__(self, identity: LogIdentity) -> None:
        self.identity = identity
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
        planned = plan(self.identity, len(self._log), versions, positions, commits, taken)
        for row in planned.rows:
            self._log.append(row)
            insort(self._streams.setdefault(row.stream, []), row, key=_version)
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

    def _fill(self, events: Sequence[StoredEvent], checkpoints: Mapping[str, Sequence[Checkpoint]]) -> None:
        self._log = list(events)
        for event in events:
            insort(self._streams.setdefault(event.stream, []), event, key=_version)
        self._checkpoints = {(name, c.log, c.group): c for name, kept in checkpoints.items() for c in kept}
        self._tail.moved(len(events))

    def _holds(self, stream: str, version: int) -> bool:
        events = self._streams.get(stream, [])
        place = bisect_right(events, version, key=_version)
        return place > 0 and events[place - 1].version == version

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> StoreUnavailable:
        return StoreUnavailable(f"the memory store of {self.identity.name!r} is closed; nothing was stored")


class MemoryRestore:
    """Fills a MemoryStore from a backup. Implements StoreRestore."""

    def __init__(self) -> None:
        self.store: MemoryStore | None = None
        """The store, once it is complete."""
        self._events: list[StoredEvent] = []

    async def load(self, events: Sequence[StoredEvent]) -> None:
        """Store events behind those that were loaded before."""
        check_follows(len(self._events), events)
        self._events += events

    async def complete(self, identity: LogIdentity, checkpoints: Mapping[str, Sequence[Checkpoint]]) -> None:
        """Make the store."""
        store = MemoryStore(identity)
        store._fill(self._events, checkpoints)
        self.store, self._events = store, []

    async def close(self) -> None:
        """Forget what is not complete."""
        self._events = []
