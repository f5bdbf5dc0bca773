"""What the tests of the JetStream store share: a load that remembers what it was told, and the judgement on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from evsync.errors import Conflict, OutcomeUnknown, StoreUnavailable
from evsync.jetstream.store.store import JetStreamStore
from evsync.records import Commit, StoredEvent
from evsync.stores.group_commit import GroupCommit
from evsync.testing.contracts.samples import append, check_log, commit, reaction, whole_log
from tests.relaying import eventually

WRITERS = 12


class Load:
    """Writers that commit one to three events at a time, some to a stream of all of them, some with a checkpoint."""

    def __init__(self, store: JetStreamStore) -> None:
        self.store = store
        self.acknowledged: dict[bytes, int] = {}
        self.refused: set[bytes] = set()
        """Commits of which the store said that nothing was stored."""
        self.unknown: set[bytes] = set()
        self._queue = GroupCommit(store, max_events=40)
        self._stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run for the length of the block; then every commit has been answered."""
        writers = [asyncio.create_task(self._write(n)) for n in range(WRITERS)]
        try:
            yield
        finally:
            self._stopping = True
            await asyncio.gather(*writers)
            await self._queue.close()

    async def reaches(self, acknowledged: int) -> None:
        """Wait until so many commits were acknowledged."""
        await eventually(lambda: len(self.acknowledged) >= acknowledged, f"{acknowledged} commits", 60)

    async def verdict(self) -> list[StoredEvent]:
        """The whole log, after asserting that it holds every acknowledged commit once, at the position that was told,
        none in part, and none that was refused."""
        log = await whole_log(self.store)
        found = check_log(log)
        positions = {command: rows[-1].position for command, rows in found.items()}
        assert {c: positions.get(c) for c in self.acknowledged} == self.acknowledged
        assert not self.refused & found.keys()
        assert found.keys() <= self.acknowledged.keys() | self.unknown
        return log

    async def _write(self, writer: int) -> None:
        choice = random.Random(writer)
        own = f"writer{writer}"
        while not self._stopping:
            try:
                await self._commit(await self._next(choice, own, writer))
            except StoreUnavailable:
                await asyncio.sleep(0.01)  # while reading where the streams end

    async def _next(self, choice: random.Random, own: str, writer: int) -> Commit:
        end = await self._end(own)
        match choice.randrange(4):
            case 0:
                return commit(append(own, end, choice.randint(2, 3)))
            case 1:
                return commit(append(own, end), append("shared", await self._end("shared")))
            case 2 if writer % 4 == 0:
                return reaction(own, choice.randrange(10**6), append(own, end))
        return commit(append(own, end))

    async def _end(self, stream: str) -> int:
        rows = await self.store.read_stream(stream)
        return rows[-1].version if rows else 0

    async def _commit(self, wanted: Commit) -> None:
        try:
            self.acknowledged[wanted.command] = await self._queue.commit(wanted)
        except (Conflict, StoreUnavailable):
            self.refused.add(wanted.command)
        except OutcomeUnknown:
            self.unknown.add(wanted.command)
