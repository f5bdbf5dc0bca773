"""The JetStream store keeps the laws, on a real server."""

from __future__ import annotations

import itertools

import pytest

from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store import JetStreamStore
from evsync.ports import Store
from evsync.testing.contracts import EventLogContract, EventStoreContract, SnapshotStoreContract


class TestJetStreamStore(EventStoreContract, EventLogContract, SnapshotStoreContract):
    opener = "evsync.opening:open_store"
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _server(self, nats_server: EmbeddedServer) -> None:
        self.server = nats_server

    async def new_store(self) -> Store:
        # A shard of its own: two streams cannot have the same subjects.
        return await JetStreamStore.open(self.server.url, service="users", shard=f"shard{next(self.numbers)}")

    async def reopen(self, store: Store) -> Store:
        identity = store.identity
        return await JetStreamStore.open(self.server.url, service="users", shard=identity.shard, create=False)

    def url_of(self, store: Store) -> str:
        assert isinstance(store, JetStreamStore)
        return f"{self.server.url}/?stream={store.stream}"
