"""The PostgreSQL store keeps the laws."""

from __future__ import annotations

import itertools

import pytest

from evsync.ports import Store
from evsync.stores.postgres import PostgresStore
from evsync.stores.postgres_trimmed import TrimmablePostgresStore
from evsync.testing.contracts import EventLogContract, EventStoreContract, SlotStoreContract, SnapshotStoreContract


class TestPostgresStore(EventStoreContract, EventLogContract, SnapshotStoreContract, SlotStoreContract):
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _database(self, postgres_url: str) -> None:
        self.database = postgres_url

    async def new_store(self) -> Store:
        url = f"{self.database}&schema=contract_{next(self.numbers)}"
        return await TrimmablePostgresStore.open(url, service="users")

    async def new_shard(self, shard: str, *, owns_slots: bool) -> Store:
        url = f"{self.database}&schema=contract_{next(self.numbers)}"
        return await TrimmablePostgresStore.open(url, service="users", shard=shard, owns_slots=owns_slots)

    async def reopen(self, store: Store) -> Store:
        return await TrimmablePostgresStore.open(
            self.url_of(store), service="users", shard=store.identity.shard, create=False
        )

    def url_of(self, store: Store) -> str:
        assert isinstance(store, PostgresStore)
        return f"{self.database}&schema={store.schema}"
