"""A store whose replies can be lost: for tests of what must happen then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal

from evsync.errors import Conflict, OutcomeUnknown
from evsync.ports import Store
from evsync.records import Change, Checkpoint, Commit, Snapshot, StoredEvent


class LostReply:
    """A Store in front of another one. While `lose` is set, every append raises OutcomeUnknown.

    "reply" stores what it is given first, "request" does not: a caller cannot tell the two apart.
    """

    def __init__(self, store: Store) -> None:
        self.identity, self.capabilities = store.identity, store.capabilities
        self.lose: Literal["nothing", "request", "reply"] = "nothing"
        self._store = store

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """See EventStore."""
        if self.lose == "request":
            raise OutcomeUnknown("the connection broke before the store had the commits, but who knows that")
        outcomes = await self._store.append(commits)
        if self.lose == "reply":
            raise OutcomeUnknown("the connection broke after the store had the commits, but who knows that")
        return outcomes

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """See EventStore."""
        return await self._store.read_stream(stream, after_version=after_version, to_version=to_version)

    def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See EventStore."""
        return self._store.read_changes(stream, after_version=after_version, to_version=to_version)

    async def checkpoints(self, follower: str) -> list[Checkpoint]:
        """See EventStore."""
        return await self._store.checkpoints(follower)

    async def head(self) -> int:
        """See EventLog."""
        return await self._store.head()

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """See EventLog."""
        return await self._store.read(after, limit)

    async def wait(self, after: int, timeout_s: float) -> int:
        """See EventLog."""
        return await self._store.wait(after, timeout_s)

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """See SnapshotStore."""
        await self._store.put_snapshot(snapshot)

    async def snapshot(self, stream: str) -> Snapshot | None:
        """See SnapshotStore."""
        return await self._store.snapshot(stream)

    async def close(self) -> None:
        """Close the store behind."""
        await self._store.close()
