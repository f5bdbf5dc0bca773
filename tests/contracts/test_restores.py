"""Every kind of store can be filled from a backup, by the same laws."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from evsync.errors import ConfigurationError, StoreError, StoreUnavailable
from evsync.jetstream.server import EmbeddedServer
from evsync.opening import open_store, restore_store
from evsync.ports import Store, StoreRestore
from evsync.records import SlotRows
from evsync.testing.contracts import StoreRestoreContract
from evsync.testing.contracts.store_restore import a_log
from tests.restored_memory import MemoryRestore


class _ByUrl(StoreRestoreContract):
    url: str

    async def again(self) -> StoreRestore:
        return await restore_store(self.url, service="users", shard=self.shard, slots=256)

    async def open(self, restore: StoreRestore) -> Store:
        return await open_store(self.url, service="users", shard=self.shard, create=False)


class TestSqliteRestore(_ByUrl):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.urls = (f"sqlite:///{tmp_path}/events{n}.db" for n in itertools.count())

    async def new_restore(self) -> StoreRestore:
        self.url = next(self.urls)
        return await self.again()


class TestPostgresRestore(_ByUrl):
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _database(self, postgres_url: str) -> None:
        self.database = postgres_url

    async def new_restore(self) -> StoreRestore:
        self.url = f"{self.database}&schema=restored_{next(self.numbers)}"
        return await self.again()


class TestJetStreamRestore(_ByUrl):
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _server(self, nats_server: EmbeddedServer) -> None:
        self.url, self.shard = nats_server.url, f"restored{next(self.numbers)}"

    async def new_restore(self) -> StoreRestore:
        return await self.again()

    async def test_slots_and_imports_are_restored(self) -> None:
        """They are refused, and nothing comes of it."""
        events, identity = a_log(self.shard)
        restore = await self.new_restore()
        await restore.load(events)
        with pytest.raises(ConfigurationError, match="cannot be restored into a JetStream stream"):
            await restore.import_events([((4, 1), events[0])])
        with pytest.raises(ConfigurationError, match="cannot be restored into a JetStream stream"):
            await restore.complete(identity, {}, SlotRows({}, {}))
        with pytest.raises(StoreError):
            await self.open(restore)
        await restore.close()

    async def test_a_restore_whose_stream_is_anothers_is_not_completed(self) -> None:
        """Its events may be due there too, by chance: no store comes of it, and nothing is taken away."""
        events, identity = a_log(self.shard)
        first = await self.new_restore()
        await first.load(events[:7])
        second = await self.again()
        await second.load(events[:7])
        await first.load(events[7:])
        with pytest.raises(StoreUnavailable, match="another restore"):
            await first.complete(identity, {})
        await first.close()
        await second.complete(identity, {})
        store = await self.open(second)
        assert await store.read(0, 100) == events
        await store.close()
        await second.close()


class TestMemoryRestore(StoreRestoreContract):
    async def new_restore(self) -> StoreRestore:
        return MemoryRestore()

    async def again(self) -> StoreRestore:
        return MemoryRestore()

    async def open(self, restore: StoreRestore) -> Store:
        assert isinstance(restore, MemoryRestore)
        if restore.store is None:
            raise StoreUnavailable("it is not complete")
        return restore.store

    @pytest.mark.skip(reason="two memory stores are never at the same place")
    async def test_a_store_that_is_there_is_not_touched(self) -> None: ...

    @pytest.mark.skip(reason="two memory stores are never at the same place")
    async def test_two_restores_at_one_place_are_never_mixed(self) -> None: ...
